"""What a whole ablation costs beside dense alone; of its cells nothing is kept."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from kvbench.config.compose import Composed
from kvbench.config.errors import UserError
from kvbench.config.text import counted
from kvbench.runs.config import RunConfig, validate
from kvbench.runs.progress import ProgressFactory
from kvbench.runs.store import Store

REPEATS = 3


@dataclass(frozen=True)
class Stages:
    """Seconds of one run; loading the model and making the prompt are not in them."""

    cells: int
    prefill: float
    compress: float
    decode: float
    device: str

    @property
    def total(self) -> float:
        return self.prefill + self.compress + self.decode


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Time dense alone, all cells, and all cells with KL, in turn; writes and returns the ratios of the medians."""
    cfg = validate(composed)
    settings = {
        # alone it needs no rows for others: the fastest dense there is
        "dense": replace(
            cfg, method={"dense": {"method": "dense"}}, kl=False, decode=replace(cfg.decode, block_rows=1)
        ),
        "ablation": replace(cfg, kl=False),
        "ablation with KL": replace(cfg, kl=True),
    }
    measured: dict[str, list[Stages]] = {name: [] for name in settings}
    for _ in range(REPEATS):
        for name, setting in settings.items():
            measured[name].append(measure(setting, progress))
    stages = {name: _median(runs) for name, runs in measured.items()}
    write(Path(cfg.run_dir), cfg.model.name, stages)
    return f"{summary(stages)}\nwritten to {cfg.run_dir}"


def measure(cfg: RunConfig, progress: ProgressFactory) -> Stages:
    """Run all cells of one prompt in a folder of their own."""
    # after validation: it imports torch and transformers, and mistakes should show at once
    from kvbench.experiments.accuracy.run import run_accuracy

    with TemporaryDirectory() as folder:
        cfg = replace(cfg, run_dir=folder)
        run_accuracy(cfg, progress)
        rows, _ = Store(folder).scan()
    if len({(row["sample_hash"], row["protocol"]) for row in rows}) > 1:
        raise UserError("task: bench_ablation times one prompt, give one task, length, sample and protocol")
    steps = max(len(row["output_ids"]) for row in rows)
    return Stages(
        cells=len(rows),
        prefill=rows[0]["prefill_s"],
        compress=sum(row["compress_s"] for row in rows),
        decode=sum(row["decode_ms_per_token"] for row in rows) * steps / 1000,
        device=rows[0]["device"],
    )


def write(folder: Path, model: str, stages: dict[str, Stages]) -> None:
    """Write table.md and stages.csv."""
    import pandas as pd

    from kvbench.report.format import Table, number

    dense = stages["dense"].total
    rows = [
        {"run": name, **asdict(run), "total": run.total, "of_dense": run.total / dense}
        for name, run in stages.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "stages.csv", index=False, float_format="%.6g")
    caption = (
        f"{model} on {stages['dense'].device}: seconds of a run on one prompt, the middle of {REPEATS}. Loading the "
        "model and making the prompt are not in them."
    )
    header = ["run", "cells", "prefill s", "compress s", "decode s", "total s", "of dense"]
    lines = [
        [row["run"], str(row["cells"])]
        + [number(row[name], ".2f") for name in ("prefill", "compress", "decode", "total", "of_dense")]
        for row in rows
    ]
    text = Table("What an ablation costs beside dense alone", caption, header, lines).markdown()
    (folder / "table.md").write_text(text, encoding="utf-8")


def summary(stages: dict[str, Stages]) -> str:
    """Times by stage, and the ratios to dense."""
    lines = [
        f"{name:<17} {counted(run.cells, 'cell'):>9}  {run.total:6.2f} s = prefill {run.prefill:.2f}"
        f" + compress {run.compress:.2f} + decode {run.decode:.2f}"
        for name, run in stages.items()
    ]
    dense = stages["dense"].total
    lines.append(f"ablation/dense ratio: {stages['ablation'].total / dense:.2f}")
    lines.append(f"ablation/dense ratio with KL: {stages['ablation with KL'].total / dense:.2f}")
    return "\n".join(lines)


def _median(runs: list[Stages]) -> Stages:
    return sorted(runs, key=lambda run: run.total)[len(runs) // 2]
