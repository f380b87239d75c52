"""Times and memory of methods, one at a time, over batch and length."""

from kvbench.config.compose import Composed
from kvbench.experiments.accuracy import by_workers, finished
from kvbench.runs.config import validate
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Measure what is not in the run's folder yet, and write the report."""
    cfg = validate(composed)
    if cfg.workers > 1 or cfg.launcher is not None:
        return by_workers(cfg, progress)
    # imported after validation: torch and transformers load slowly, and mistakes should show at once
    from kvbench.experiments.efficiency.run import run_efficiency

    return finished(cfg, run_efficiency(cfg, progress))
