"""Scores of methods on tasks, compared with dense."""

from kvbench import report
from kvbench.config.compose import Composed
from kvbench.runs.config import validate
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Run the cells that are not in the run's folder yet, and write the report."""
    cfg = validate(composed)
    # imported after validation: torch and transformers load slowly, and mistakes should show at once
    from kvbench.experiments.accuracy.run import run_accuracy

    run_accuracy(cfg, progress)
    return reported(cfg.run_dir)


def reported(folder: str) -> str:
    """Write the report of a run; returns its table and the path of the report."""
    files = report.write_report(folder)
    return f"{files['table.md'].read_text(encoding='utf-8')}\nreport: {files['report.html']}"
