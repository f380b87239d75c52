"""Tables, figures and the HTML report of a run; reads only the store."""

from kvbench.report.compare import compare, comparison_text
from kvbench.report.run_view import Run, load
from kvbench.report.text import explain, status
from kvbench.report.write import write

__all__ = ["Run", "compare", "comparison_text", "explain", "load", "status", "write"]
