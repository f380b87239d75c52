"""Measures the replay speed, including loading."""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import named
from kvbench.claude.prices import PriceBook
from kvbench.claude.simulate import simulate
from kvbench.claude.traces import sessions
from kvbench.claude.traces.kv_cache_tester import Choices, KvCacheTesterTrace
from kvbench.config.text import counted
from kvbench.experiments.bench_prompt_cache.config import BenchConfig
from kvbench.runs.progress import ProgressFactory, staged

PLACEMENTS = ("none", "automatic", "explicit_four", "stable_1h_tail_5m")


@dataclass(frozen=True)
class Speed:
    """Requests loaded and replayed per second, median of the repetitions.

    Attributes:
        blocks: cut of the prompts.
        requests: number of requests in the trace.
        placements: number of placements that each request is replayed under.
        per_second: requests per second of processor time; a request counts once for all placements.
        wall_per_second: requests per second of wall time.
        peak_mib: peak memory in MiB (measured in a separate pass).
    """

    blocks: str
    requests: int
    placements: int
    per_second: float
    wall_per_second: float
    peak_mib: float

    def __str__(self) -> str:
        """A one-line summary."""
        return (
            f"blocks={self.blocks}: {counted(self.requests, 'request')} x {counted(self.placements, 'placement')}, "
            f"loading included: {self.per_second:,.0f} requests/s "
            f"({self.per_second * self.placements:,.0f} placement-requests/s) of processor time, "
            f"{self.wall_per_second:,.0f} requests/s by the clock, peak {self.peak_mib:.1f} MiB"
        )


BLOCKS: tuple[Literal["types", "hash"], ...] = ("types", "hash")


def measure_all(cfg: BenchConfig, progress: ProgressFactory) -> list[Speed]:
    """Speeds with one block per content type and with 64-token blocks.

    Args:
        cfg: the configuration.
        progress: makes the progress display, with a line per cut of the prompts.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(cfg.trace or scratch)
        if cfg.trace is None:
            sessions.write_sessions(folder, cfg.sessions)
        speeds = []
        with staged(progress, [f"blocks={cut}" for cut in BLOCKS]) as begin:
            for cut in BLOCKS:
                begin()
                speeds.append(measure(folder, blocks=cut))
        return speeds


def measure(
    folder: Path,
    *,
    blocks: Literal["types", "turn", "hash"] = "types",
    placements: Sequence[str] = PLACEMENTS,
    repeat: int = 5,
) -> Speed:
    """Replays a folder of kv-cache-tester's sessions under several placements.

    Args:
        folder: session files.
        blocks: cut of the prompts; "hash" is one block per 64 tokens.
        placements: names of placements.
        repeat: number of repetitions.
    """
    prices = PriceBook.load()
    chosen = {name: named(name) for name in placements}
    cpu, wall = [], []
    for _ in range(repeat):
        started = time.process_time(), time.perf_counter()
        simulate(_open(folder, prices, blocks).requests(Assumptions()), chosen, prices)
        cpu.append(time.process_time() - started[0])
        wall.append(time.perf_counter() - started[1])
    tracemalloc.start()
    totals = simulate(_open(folder, prices, blocks).requests(Assumptions()), chosen, prices)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    requests = totals[placements[0]].requests
    middle = repeat // 2
    return Speed(
        blocks,
        requests,
        len(placements),
        requests / sorted(cpu)[middle],
        requests / sorted(wall)[middle],
        peak / 2**20,
    )


def _open(folder: Path, prices: PriceBook, blocks: Literal["types", "turn", "hash"]) -> KvCacheTesterTrace:
    return KvCacheTesterTrace(folder, prices, Choices(blocks=blocks))
