"""Speed of the prompt-cache simulator, loading included; without a trace, on generated sessions."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kvbench.claude.traces import sessions
from kvbench.config.compose import Composed
from kvbench.config.errors import UserError
from kvbench.experiments.bench_prompt_cache.measure import Speed, measure
from kvbench.experiments.common import configuration
from kvbench.report.format import Table
from kvbench.runs.progress import ProgressFactory


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is replayed.

    Attributes:
        run_dir: where table.md and bench.csv go.
        trace: folder of Claude Code sessions; None generates them.
        sessions: how many are generated.
    """

    run_dir: str
    trace: str | None = None
    sessions: int = 40

    def __post_init__(self) -> None:
        if self.sessions < 1:
            raise UserError(f"sessions: {self.sessions} is not allowed, give a positive whole number")


def main(composed: Composed, progress: ProgressFactory) -> str:
    """Measure on whole turns and on 64-token blocks, and write table.md and bench.csv; returns the lines to print."""
    cfg = configuration(composed, BenchConfig)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(cfg.trace or scratch)
        if cfg.trace is None:
            sessions.write_sessions(folder, cfg.sessions)
        found = [measure(folder, blocks="types"), measure(folder, blocks="hash")]
    out = Path(cfg.run_dir)
    out.mkdir(parents=True, exist_ok=True)
    rows = [{**vars(speed), "generated": cfg.trace is None} for speed in found]
    pd.DataFrame(rows).to_csv(out / "bench.csv", index=False, float_format="%.6g")
    (out / "table.md").write_text(_table(cfg, found).markdown(), encoding="utf-8")
    return "\n".join([*map(str, found), f"written to {out}"])


def _table(cfg: BenchConfig, found: list[Speed]) -> Table:
    rows = []
    for speed in found:
        rows.append([speed.blocks, f"{speed.requests:,}", str(speed.placements)])
        rows[-1] += [f"{speed.per_second:,.0f}", f"{speed.wall_per_second:,.0f}", f"{speed.peak_mib:.1f}"]
    header = ["blocks", "requests", "placements", "requests/s of processor time", "requests/s by the clock"]
    what = "Generated sessions" if cfg.trace is None else Path(cfg.trace).name
    caption = f"{what}: every request is loaded and replayed under all placements, and counted once."
    return Table("Speed of the prompt-cache simulator", caption, [*header, "peak MiB"], rows)
