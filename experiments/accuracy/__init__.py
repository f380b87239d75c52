"""Scores of methods on tasks, compared with dense."""

from collections.abc import Sequence

from kvbench import report
from kvbench.config.compose import Composed
from kvbench.experiments.common import with_failures
from kvbench.runs.config import RunConfig, validate
from kvbench.runs.progress import ProgressFactory
from kvbench.runs.store import Record


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Run the cells that are not in the run's folder yet, and write the report."""
    cfg = validate(composed)
    if cfg.workers > 1 or cfg.launcher is not None:
        return by_workers(cfg, progress)
    # imported after validation: torch and transformers load slowly, and mistakes should show at once
    from kvbench.experiments.accuracy.run import run_accuracy

    return finished(cfg, run_accuracy(cfg, progress))


def by_workers(cfg: RunConfig, progress: ProgressFactory) -> str:
    """The same by several processes."""
    from kvbench.runs.workers import run_workers

    run_workers(cfg, progress)
    return finished(cfg, report.load(cfg.run_dir).failures)


def finished(cfg: RunConfig, failures: Sequence[Record]) -> str:
    """The report of a run, or where none is wanted, how far it is.

    Raises:
        CellsFailed: with the same text, and the failures.
    """
    if cfg.report:
        return reported(cfg.run_dir, failures)
    return with_failures(report.status(cfg.run_dir), failures, cfg.run_dir)


def reported(folder: str, failures: Sequence[Record]) -> str:
    """Write the report of a run; returns what it found and the path of the report.

    Raises:
        CellsFailed: with the same text, and the failures.
    """
    run = report.load(folder)
    if failures and not run.columns:
        return with_failures(f"{folder}: no cell is finished", failures, folder)
    files = report.write_report(run)
    return with_failures(f"{report.finding(run)}\nreport: {files['report.html']}", failures, folder)
