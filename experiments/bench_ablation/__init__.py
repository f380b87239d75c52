"""The cost of a whole ablation compared with dense alone; its cells are discarded."""

from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.experiments.bench_ablation import report, run
from kvbench.runs.config import validate
from kvbench.runs.progress import ProgressFactory


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Time dense alone, all cells, and all cells with KL, in turn; write and return the ratios of the medians."""
    cfg = validate(composed)
    stages = run.measure_all(cfg, progress)
    report.write_report(Path(cfg.run_dir), cfg.model.name, stages)
    return f"{report.summary(stages)}\nwritten to {cfg.run_dir}"
