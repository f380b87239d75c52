"""Table and CSV of the simulator's speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kvbench.config.files import write
from kvbench.experiments.bench_prompt_cache.config import BenchConfig
from kvbench.experiments.bench_prompt_cache.run import Speed
from kvbench.report.format import Table, csv_text


def write_report(cfg: BenchConfig, speeds: Sequence[Speed]) -> Path:
    """Writes table.md and bench.csv into the run's folder; returns the folder."""
    folder = Path(cfg.run_dir)
    rows = [{**vars(speed), "generated": cfg.trace is None} for speed in speeds]
    write(folder / "bench.csv", csv_text(pd.DataFrame(rows), "%.6g"))
    write(folder / "table.md", _table(cfg, speeds).markdown())
    return folder


def _table(cfg: BenchConfig, speeds: Sequence[Speed]) -> Table:
    rows = []
    for speed in speeds:
        rows.append([speed.blocks, f"{speed.requests:,}", str(speed.placements)])
        rows[-1] += [f"{speed.per_second:,.0f}", f"{speed.wall_per_second:,.0f}", f"{speed.peak_mib:.1f}"]
    header = ["blocks", "requests", "placements", "requests/s of processor time", "requests/s by the clock"]
    what = "Generated sessions" if cfg.trace is None else Path(cfg.trace).name
    caption = f"{what}: every request is loaded and replayed under all placements, and counted once."
    return Table("Speed of the prompt-cache simulator", caption, [*header, "peak MiB"], rows)
