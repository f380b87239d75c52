"""The experiment `roofline_check`: decode attention, measured and modelled, on this machine."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kvbench.config.errors import UserError
from kvbench.config.files import write
from kvbench.cost.accounting import account
from kvbench.cost.measure import measure as measure_device
from kvbench.cost.measure import place
from kvbench.cost.shapes import ModelShape, model_shape
from kvbench.engine.batch import BatchLayer
from kvbench.engine.compress import cell_lanes
from kvbench.experiments.roofline_check.config import FIXED_LENGTH, RooflineCheckConfig
from kvbench.kernels.clock import ColdClock, clock_for
from kvbench.methods import LayerSnapshot, Resolved, build
from kvbench.report.format import csv_text
from kvbench.runs.progress import ProgressFactory

# copies of the cache, stepped through in turn so that none is in the processor's caches: total bytes, maximum number
COLD, COPIES = 2 * 10**9, 64
# budget of a step over FIXED_LENGTH tokens
FIXED_TOKENS = 64
KEY = ["model", "method", "budget", "length"]


def check(cfg: RooflineCheckConfig, progress: ProgressFactory) -> pd.DataFrame:
    """Measure what check.csv in the run's folder lacks, and save it there after every length.

    Args:
        cfg: the configuration.
        progress: makes the progress display; a length of a model counts as a prompt, each method at a budget as a cell.

    Returns:
        All rows of the folder, see `compare`.
    """
    path = Path(cfg.run_dir) / "check.csv"
    frame = pd.read_csv(path, keep_default_na=False) if path.exists() else pd.DataFrame(columns=KEY)
    done = set(frame[KEY].astype(str).itertuples(index=False, name=None))
    pending = [
        (shape, length, points)
        for shape in [model_shape(name, cfg.config_dirs) for name in cfg.models]
        for length in cfg.lengths
        if (points := [one for one in _points(cfg) if _key(shape, *one, length) not in done])
    ]
    short: dict[tuple[str, str], Point] = {}
    with progress(sum(len(points) for *_, points in pending), len(pending)) as display:
        for shape, length, points in pending:
            display.start_prompt(f"{shape.name} {length}")
            rows = []
            for row in _measured(cfg, shape, length, points, short):
                rows.append(row)
                display.cells_done(1)
            added = pd.DataFrame(rows)
            frame = pd.concat([frame, added], ignore_index=True) if len(frame) else added
            write(path, csv_text(compare(frame), "%.6g"))
    return compare(frame)


def _key(shape: ModelShape, label: str, tokens: int | None, length: int) -> tuple[str, ...]:
    """The columns `KEY` of a point, as text."""
    return shape.name, label, str(tokens or ""), str(length)


def compare(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds modelled times, ratios and speed-ups to measured rows.

    Bandwidth, rate and fixed costs are medians of all readings, because a shared machine drifts. `speedup` is over
    dense at the same length; in the modelled speed-up the bandwidth cancels out.
    """
    bandwidth, rate = frame["read_gb_per_s"].median() * 1e6, frame["tflops"].median() * 1e9  # per millisecond
    modelled = np.maximum(frame["moved_bytes"] / bandwidth, frame["flops"] / rate)
    short = frame.groupby(["model", "method", "budget"])["short_ms"].transform("median")
    fixed = (short - frame["short_bytes"] / bandwidth).clip(lower=0)
    frame = frame.assign(
        modelled_ms=modelled, fixed_ms=fixed, ratio=frame["median_ms"] / modelled,
        ratio_with_fixed=frame["median_ms"] / (modelled + fixed),
    )  # fmt: skip
    dense = frame[frame["method"] == "dense"].set_index(["model", "length"])
    baseline = dense.reindex(pd.MultiIndex.from_frame(frame[["model", "length"]])).reset_index(drop=True)
    return frame.assign(
        speedup=baseline["median_ms"] / frame["median_ms"],
        speedup_modelled=baseline["modelled_ms"] / frame["modelled_ms"],
    )


def _measured(
    cfg: RooflineCheckConfig,
    shape: ModelShape,
    length: int,
    points: list[tuple[str, int | None]],
    short: dict[tuple[str, str], Point],
) -> Iterator[dict[str, Any]]:
    """A row per method and budget; `short`, filled here, holds each method's step over a short prompt."""
    device, clock, timing = measure_device(), ColdClock(place(), cfg.steps), (cfg.steps, cfg.warmup)
    for label, tokens in points:
        entry = cfg.method[label]
        own = shape.name, label
        if own not in short:
            short[own] = measure(entry, shape, FIXED_LENGTH, tokens and FIXED_TOKENS, *timing)
        reading = clock.read_bandwidth()
        row = {
            "model": shape.name,
            "method": label,
            "budget": "" if tokens is None else str(tokens),
            "length": length,
            **dataclasses.asdict(measure(entry, shape, length, tokens, *timing)),
            "short_ms": short[own].median_ms,
            "short_bytes": short[own].moved_bytes,
            "read_gb_per_s": reading,
            "tflops": device.flops() / 1e12,
            "device": device.title,
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
        }
        # rounded as in the file, so that a resumed run has the same numbers
        yield {
            name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()
        }


def _points(cfg: RooflineCheckConfig) -> Iterator[tuple[str, int | None]]:
    for label, entry in cfg.method.items():
        if not build(entry, f"method.{label}").needs_budget:
            yield label, None
        elif cfg.budget.tokens:
            yield from ((label, tokens) for tokens in cfg.budget.tokens)
        else:
            raise UserError(f"budget: {label} needs one, give budget.tokens=[...]")


@dataclass(frozen=True)
class Point:
    """One layer's attention of a decode step.

    Attributes:
        kept: prompt tokens per KV head.
        read_mb: 10^6 bytes read, modelled.
        moved_bytes: bytes read and written, modelled.
        flops: operations, modelled.
        median_ms: measured milliseconds.
        p20_ms: 20th percentile.
        p80_ms: 80th percentile.
    """

    kept: float
    read_mb: float
    moved_bytes: float
    flops: float
    median_ms: float
    p20_ms: float
    p80_ms: float


@torch.inference_mode()
def measure(
    entry: Mapping[str, Any], shape: ModelShape, length: int, tokens: int | None, steps: int = 15, warmup: int = 3,
    seed: int = 0,
) -> Point:  # fmt: skip
    """Time the engine's attention of one layer on random keys: one sequence, bf16.

    Args:
        entry: the method's configuration.
        shape: the model, of which one layer is built.
        length: prompt tokens.
        tokens: the budget, None for methods without one.
        steps: measured steps; each steps every copy of the cache.
        warmup: unmeasured steps before them.
        seed: seed of the random numbers.
    """
    one, new = dataclasses.replace(shape, layers=1), steps + warmup
    sequence = account(dict(entry), one, prompt=length, new=new, tokens=tokens)
    device = place()
    draw = torch.Generator(device).manual_seed(seed)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=draw, device=device).bfloat16()

    heads, dim = one.kv_heads, one.head_dim
    window = max(1, sequence.resolved.eviction.window)
    snapshot = LayerSnapshot(
        random(heads, length, dim),
        random(heads, length, dim),
        random(one.heads, window, dim),
        scaling=dim**-0.5,
    )
    copies = min(COPIES, max(2, int(COLD // sequence.resident_end)))
    layers = [_layer(snapshot, sequence.resolved, new) for _ in range(copies)]
    q = random(1, one.heads, 1, dim)
    k, v = random(1, heads, 1, dim), random(1, heads, 1, dim)

    def step() -> None:
        for layer in layers:
            layer.update(k, v)
            layer.attend(q, dim**-0.5)

    clock = clock_for(device)
    times = [clock.milliseconds(step) / copies for _ in range(new)][warmup:]
    p20, median, p80 = np.percentile(times, [20, 50, 80])
    work = sequence.mean_step()
    return Point(
        kept=sequence.kept,
        read_mb=work.read / 1e6,
        moved_bytes=work.bytes,
        flops=work.flops,
        median_ms=float(median),
        p20_ms=float(p20),
        p80_ms=float(p80),
    )


def _layer(snapshot: LayerSnapshot, cell: Resolved, room: int) -> BatchLayer:
    """A copy of the layer's cache that shares no memory with the others."""
    copy = dataclasses.replace(snapshot, k_HTD=snapshot.k_HTD.clone(), v_HTD=snapshot.v_HTD.clone())
    lanes = cell_lanes(copy, cell, slice(0, 1), room, {}, {}, share=False)
    return BatchLayer(lanes, 1, copy.group, copy.k_HTD, copy.heads, room)
