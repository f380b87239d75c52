"""The table of bench_ablation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from kvbench.config.files import write
from kvbench.config.text import counted
from kvbench.experiments.bench_ablation.run import REPEATS, Stages
from kvbench.report.format import csv_text


def write_report(folder: Path, model: str, stages: dict[str, Stages]) -> None:
    """Write table.md and stages.csv."""
    import pandas as pd

    from kvbench.report.format import Table, number

    dense = stages["dense"].total
    rows = [
        {"run": name, **asdict(run), "total": run.total, "of_dense": run.total / dense}
        for name, run in stages.items()
    ]
    write(folder / "stages.csv", csv_text(pd.DataFrame(rows), "%.6g"))
    caption = (
        f"{model} on {stages['dense'].device}: seconds of a run on one prompt, median of {REPEATS} runs, "
        "without loading the model and making the prompt."
    )
    header = ["run", "cells", "prefill s", "compress s", "decode s", "total s", "of dense"]
    lines = [
        [row["run"], str(row["cells"])]
        + [number(row[name], ".2f") for name in ("prefill", "compress", "decode", "total", "of_dense")]
        for row in rows
    ]
    text = Table("The cost of an ablation compared with dense alone", caption, header, lines).markdown()
    write(folder / "table.md", text)


def summary(stages: dict[str, Stages]) -> str:
    """Times by stage, and ratios to dense."""
    lines = [
        f"{name:<17} {counted(run.cells, 'cell'):>9}  {run.total:6.2f} s = prefill {run.prefill:.2f}"
        f" + compress {run.compress:.2f} + decode {run.decode:.2f}"
        for name, run in stages.items()
    ]
    dense = stages["dense"].total
    lines.append(f"ablation/dense ratio: {stages['ablation'].total / dense:.2f}")
    lines.append(f"ablation/dense ratio with KL: {stages['ablation with KL'].total / dense:.2f}")
    return "\n".join(lines)
