"""The experiment `roofline_check`: attention of decode steps, measured beside modelled, on the device there is."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kvbench.config.errors import UserError
from kvbench.cost.accounting import account
from kvbench.cost.measure import measure as measure_device
from kvbench.cost.measure import place
from kvbench.cost.shapes import ModelShape, model_shape
from kvbench.engine.compress import cell_lanes
from kvbench.engine.lanes import BlockLayer
from kvbench.experiments.efficiency.run import CpuClock, CudaClock
from kvbench.kernels.dev.bench import Clock
from kvbench.methods import LayerSnapshot, Resolved, build
from kvbench.runs.config import BudgetConfig

# caches stepped through in turn, so that none is found in the processor's own: bytes in all, and copies at most
COLD, COPIES = 2 * 10**9, 64
# a prompt and a budget so short that a step's time is what it costs besides moving bytes
FIXED_LENGTH, FIXED_TOKENS = 256, 64
KEY = ["model", "method", "budget", "length"]


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What to measure.

    Attributes:
        run_dir: where the results go; what is there already is not measured again.
        models: names of conf/shape, or folders with a config.json.
        lengths: prompt tokens.
        method: per label the entry for `kvbench.methods.build`.
        budget: budgets in tokens of the methods that take one.
        steps: measured decode steps.
        warmup: steps before them.
        config_dirs: the user's configuration folders.
    """

    run_dir: str
    models: tuple[str, ...]
    lengths: tuple[int, ...]
    method: dict[str, dict[str, Any]] = field(default_factory=dict)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    steps: int = 15
    warmup: int = 3
    config_dirs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("models", "lengths", "method"):
            if not getattr(self, name):
                raise UserError(f"{name}: empty, give {name}=[...]")
        if min(self.lengths) <= FIXED_LENGTH:
            raise UserError(f"lengths: {min(self.lengths)} is not allowed, give numbers above {FIXED_LENGTH}")
        if self.steps < 1 or self.warmup < 0:
            raise UserError("steps, warmup: give at least 1 and 0")


def check(cfg: CheckConfig) -> pd.DataFrame:
    """Measure what is not yet in check.csv of the run's folder, and write it there after every length.

    Returns:
        All rows of the folder, see `compare`.
    """
    path = Path(cfg.run_dir) / "check.csv"
    frame = pd.read_csv(path, keep_default_na=False) if path.exists() else pd.DataFrame(columns=KEY)
    for shape in [model_shape(name, cfg.config_dirs) for name in cfg.models]:
        short: dict[str, Point] = {}
        for length in cfg.lengths:
            done = set(frame[KEY].astype(str).itertuples(index=False, name=None))
            pending = [
                (label, tokens)
                for label, tokens in _points(cfg)
                if (shape.name, label, str(tokens or ""), str(length)) not in done
            ]
            if pending:
                rows = pd.DataFrame(_measured(cfg, shape, length, pending, short))
                frame = pd.concat([frame, rows], ignore_index=True) if len(frame) else rows
            path.parent.mkdir(parents=True, exist_ok=True)
            compare(frame).to_csv(path, index=False, float_format="%.6g")
    return compare(frame)


def compare(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows with what the model says beside what was measured.

    Bandwidth, rate and fixed costs are medians of all readings, because those of a shared machine drift. `speedup` is
    over dense at the same length; the bandwidth cancels in what the model says of it.
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
    beside = dense.reindex(pd.MultiIndex.from_frame(frame[["model", "length"]])).reset_index(drop=True)
    return frame.assign(
        speedup=beside["median_ms"] / frame["median_ms"],
        speedup_modelled=beside["modelled_ms"] / frame["modelled_ms"],
    )


def _measured(
    cfg: CheckConfig,
    shape: ModelShape,
    length: int,
    points: list[tuple[str, int | None]],
    short: dict[str, Point],
) -> Iterator[dict[str, Any]]:
    """A row per method and budget; `short` holds the methods' steps over a short prompt, and is filled."""
    device, clock, timing = measure_device(), Clock(place(), cfg.steps), (cfg.steps, cfg.warmup)
    for label, tokens in points:
        entry = cfg.method[label]
        if label not in short:
            short[label] = measure(entry, shape, FIXED_LENGTH, tokens and FIXED_TOKENS, *timing)
        reading = clock.read_bandwidth()
        row = {
            "model": shape.name,
            "method": label,
            "budget": "" if tokens is None else str(tokens),
            "length": length,
            **dataclasses.asdict(measure(entry, shape, length, tokens, *timing)),
            "short_ms": short[label].median_ms,
            "short_bytes": short[label].moved_bytes,
            "read_gb_per_s": reading,
            "tflops": device.flops() / 1e12,
            "device": device.title,
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
        }
        # as many digits as the file keeps, so that a resumed run finds the same numbers
        yield {
            name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()
        }


def _points(cfg: CheckConfig) -> Iterator[tuple[str, int | None]]:
    for label, entry in cfg.method.items():
        if not build(entry, f"method.{label}").needs_budget:
            yield label, None
        elif cfg.budget.tokens:
            yield from ((label, tokens) for tokens in cfg.budget.tokens)
        else:
            raise UserError(f"budget: {label} needs one, give budget.tokens=[...]")


def markdown(frame: pd.DataFrame) -> str:
    """The table, with what was measured where."""
    models, device, torch_version, date = (
        ", ".join(sorted(set(frame[name].astype(str)))) for name in ("model", "device", "torch", "date")
    )
    middle, low, high = (frame["read_gb_per_s"].quantile(q) for q in (0.5, 0, 1))
    lines = [
        f"Attention of one layer and decode step, {models}, one sequence, bf16, caches cold; {device},",
        f"torch {torch_version}, {date}. Measured: medians (20th to 80th percentile). Modelled: bytes over the read",
        f"bandwidth, {middle:.1f} GB/s, the median of a reading per row ({low:.1f} to {high:.1f}): a lower bound.",
        f"Fixed: a step over {FIXED_LENGTH} tokens less what its bytes take, measured per method.",
        "",
        "| tokens | method | budget | read MB | measured ms | modelled ms | measured / modelled | fixed ms "
        "| measured / (modelled + fixed) | faster than dense | modelled |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in frame.sort_values(["length", "method"], kind="stable").to_dict("records"):
        spread = f"{row['median_ms']:.3f} ({row['p20_ms']:.3f} to {row['p80_ms']:.3f})"
        lines.append(
            f"| {row['length']} | {row['method']} | {row['budget']} | {row['read_mb']:.2f} | {spread} "
            f"| {row['modelled_ms']:.3f} | {row['ratio']:.2f} | {row['fixed_ms']:.3f} | {row['ratio_with_fixed']:.2f} "
            f"| {row['speedup']:.1f} x | {row['speedup_modelled']:.1f} x |"
        )
    return "\n".join(lines) + "\n"


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
    """Time the engine's own attention of one layer on random keys, one sequence, bf16.

    Args:
        entry: the method's configuration.
        shape: the model; one layer of it is made.
        length: prompt tokens.
        tokens: the budget, None where there is none.
        steps: measured steps; each goes through all copies of the cache.
        warmup: steps before them.
        seed: of the random numbers.
    """
    one, new = dataclasses.replace(shape, layers=1), steps + warmup
    use = account(dict(entry), one, prompt=length, new=new, tokens=tokens)
    where = place()
    draw = torch.Generator(where).manual_seed(seed)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=draw, device=where).bfloat16()

    heads, dim = one.kv_heads, one.head_dim
    window = max(1, use.resolved.eviction.window)
    snapshot = LayerSnapshot(
        random(heads, length, dim),
        random(heads, length, dim),
        random(one.heads, window, dim),
        scaling=dim**-0.5,
    )
    copies = min(COPIES, max(2, int(COLD // use.resident_end)))
    layers = [_layer(snapshot, use.resolved, new) for _ in range(copies)]
    q = random(1, one.heads, 1, dim)
    k, v = random(1, heads, 1, dim), random(1, heads, 1, dim)

    def step() -> None:
        for layer in layers:
            layer.update(k, v)
            layer.attend(q, dim**-0.5)

    clock = CudaClock(where) if where.type == "cuda" else CpuClock()
    times = [clock.time(step) / copies for _ in range(new)][warmup:]
    p20, median, p80 = np.percentile(times, [20, 50, 80])
    work = use.mean_step()
    return Point(
        kept=use.kept,
        read_mb=work.read / 1e6,
        moved_bytes=work.bytes,
        flops=work.flops,
        median_ms=float(median),
        p20_ms=float(p20),
        p80_ms=float(p80),
    )


def _layer(snapshot: LayerSnapshot, cell: Resolved, room: int) -> BlockLayer:
    """One copy of the layer's cache, none of it shared with another copy."""
    own = dataclasses.replace(snapshot, k_HTD=snapshot.k_HTD.clone(), v_HTD=snapshot.v_HTD.clone())
    lanes = cell_lanes(own, cell, slice(0, 1), room, {}, {}, share=False)
    return BlockLayer(lanes, 1, own.group, own.k_HTD, own.heads, room)
