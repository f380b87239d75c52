"""Times dense alone, an ablation, and an ablation with KL, in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

from kvbench.config.errors import UserError
from kvbench.runs.config import RunConfig
from kvbench.runs.progress import ProgressFactory
from kvbench.runs.store import Store

REPEATS = 3


@dataclass(frozen=True)
class Stages:
    """Seconds of one run, without loading the model and making the prompt."""

    cells: int
    prefill: float
    compress: float
    decode: float
    device: str

    @property
    def total(self) -> float:
        return self.prefill + self.compress + self.decode


def measure_all(cfg: RunConfig, progress: ProgressFactory) -> dict[str, Stages]:
    """The median run of each setting, by its name."""
    settings = {
        "dense": replace(cfg, method={"dense": {"method": "dense"}}, kl=False),
        "ablation": replace(cfg, kl=False),
        "ablation with KL": replace(cfg, kl=True),
    }
    measured: dict[str, list[Stages]] = {name: [] for name in settings}
    for _ in range(REPEATS):
        for name, setting in settings.items():
            measured[name].append(measure(setting, progress))
    return {name: _median(runs) for name, runs in measured.items()}


def measure(cfg: RunConfig, progress: ProgressFactory) -> Stages:
    """Run all cells of one prompt in a temporary folder."""
    # imported here: torch and transformers load slowly, and mistakes should show at once
    from kvbench.experiments.accuracy.run import run_accuracy

    with TemporaryDirectory() as folder:
        cfg = replace(cfg, run_dir=folder)
        failed = run_accuracy(cfg, progress)
        if failed:
            raise UserError(
                f"method: a cell fails, so that the times are not comparable: {failed[0]['reason']}"
            )
        rows, _ = Store(folder).scan()
    if len({(row["sample_hash"], row["protocol"]) for row in rows}) > 1:
        raise UserError("task: bench_ablation times one prompt; give one task, length, sample and protocol")
    steps = max(len(row["output_ids"]) for row in rows)
    return Stages(
        cells=len(rows),
        prefill=rows[0]["prefill_s"],
        compress=sum(row["compress_s"] for row in rows),
        decode=sum(row["decode_ms_per_token"] for row in rows) * steps / 1000,
        device=rows[0]["device"],
    )


def _median(runs: list[Stages]) -> Stages:
    return sorted(runs, key=lambda run: run.total)[len(runs) // 2]
