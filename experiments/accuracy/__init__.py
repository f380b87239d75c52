"""Scores of methods on tasks, with dense beside them."""

from kvbench import report
from kvbench.config.compose import Composed
from kvbench.runs.config import validate
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Run what is not yet in the run's folder, and write the report."""
    cfg = validate(composed)
    # after validation: it imports torch and transformers, and mistakes should show at once
    from kvbench.experiments.accuracy.run import run_accuracy

    run_accuracy(cfg, progress)
    return reported(cfg.run_dir)


def reported(folder: str) -> str:
    """Write the report of a run; returns its table and where the rest is."""
    files = report.write_report(folder)
    return f"{files['table.md'].read_text(encoding='utf-8')}\nreport: {files['report.html']}"
