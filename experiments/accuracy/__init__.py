"""Scores of methods on tasks, compared with dense."""

from collections.abc import Sequence

from kvbench import report
from kvbench.config.compose import Composed
from kvbench.experiments.common import with_failures
from kvbench.runs.config import validate
from kvbench.runs.progress import ProgressFactory
from kvbench.runs.store import Record


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Run the cells that are not in the run's folder yet, and write the report."""
    cfg = validate(composed)
    # imported after validation: torch and transformers load slowly, and mistakes should show at once
    from kvbench.experiments.accuracy.run import run_accuracy

    failures = run_accuracy(cfg, progress)
    return reported(cfg.run_dir, failures)


def reported(folder: str, failures: Sequence[Record]) -> str:
    """Write the report of a run; returns what it found and the path of the report.

    Raises:
        CellsFailed: with the same text, and the failures.
    """
    run = report.load(folder)
    if failures and not run.records:
        return with_failures(f"{folder}: no cell is finished", failures, folder)
    files = report.write_report(run)
    return with_failures(f"{report.finding(run)}\nreport: {files['report.html']}", failures, folder)
