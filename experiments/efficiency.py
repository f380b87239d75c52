"""Times and memory of methods, one at a time, over batch and length."""

from typing import Any

from kvbench.compose import Composed
from kvbench.config import validate
from kvbench.experiments.accuracy import reported


def main(composed: Composed, progress: Any) -> str:
    """Run what is not yet in the run's folder, and write the report."""
    cfg = validate(composed)
    # after validation: it imports torch and transformers, and mistakes should show at once
    from kvbench.efficiency import run_efficiency

    run_efficiency(cfg, progress)
    return reported(cfg.run_dir)
