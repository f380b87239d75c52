"""Tables, figures and the HTML report of a run; reads only the store."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvbench.report.clusters import Clusters
    from kvbench.report.comparison import compare, comparison_text
    from kvbench.report.console import explain, find, finding, status
    from kvbench.report.files import page_of, write_report
    from kvbench.report.overview import write_index
    from kvbench.report.run import Run, load

__all__ = [
    "Clusters",
    "Run",
    "compare",
    "comparison_text",
    "explain",
    "find",
    "finding",
    "load",
    "page_of",
    "status",
    "write_index",
    "write_report",
]

_MODULES = {
    "Clusters": "clusters",
    "Run": "run",
    "compare": "comparison",
    "comparison_text": "comparison",
    "explain": "console",
    "find": "console",
    "finding": "console",
    "load": "run",
    "page_of": "files",
    "status": "console",
    "write_index": "overview",
    "write_report": "files",
}


def __getattr__(name: str) -> Any:
    # imported on first use, so that `kvbench.report.format` loads neither pandas nor matplotlib
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
