"""The experiment `roofline`: every method, length and device of a configuration, as one table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from kvbench.config.errors import UserError
from kvbench.cost import roofline
from kvbench.cost.hardware import Hardware, hardware
from kvbench.cost.shapes import ModelShape, model_shape
from kvbench.runs.config import BudgetConfig

if TYPE_CHECKING:
    from kvbench.cost.accounting import Account

#: what is between one method's row and another's
SETTING = ["model", "device", "length"]


@dataclass(frozen=True, kw_only=True)
class RooflineConfig:
    """What to model.

    Attributes:
        run_dir: where the results go.
        models: names of conf/shape, or folders with a config.json.
        devices: names of conf/hardware, or files.
        lengths: prompt tokens.
        new: tokens that each sequence generates.
        method: per label the entry for `kvbench.methods.build`.
        budget: budgets of the methods that take one.
        batch: sequences decoded together, beside the largest batch that fits.
        usd_per_hour: instead of the devices' rental prices.
        usable: share of a device's memory for weights and caches.
        peak: reckon with the datasheets' rates.
        config_dirs: the user's configuration folders.
    """

    run_dir: str
    models: tuple[str, ...]
    devices: tuple[str, ...]
    lengths: tuple[int, ...]
    new: int = 128
    method: dict[str, dict[str, Any]] = field(default_factory=dict)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    batch: int = 1
    usd_per_hour: float | None = None
    usable: float = roofline.USABLE
    peak: bool = False
    config_dirs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("models", "devices", "lengths", "method"):
            if not getattr(self, name):
                raise UserError(f"{name}: empty, give {name}=[...]")
        for name in ("new", "batch", *(["usd_per_hour"] if self.usd_per_hour is not None else [])):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}: {getattr(self, name)} is not allowed, give a number above 0")
        for length in self.lengths:
            if length < 1:
                raise UserError(f"lengths: {length} is not allowed, give positive whole numbers")
        if not 0 < self.usable <= 1:
            raise UserError(f"usable: {self.usable} is not in (0, 1]")


def scan(cfg: RooflineConfig) -> pd.DataFrame:
    """One row per model, device, length, method and budget; every figure is `modelled`.

    Columns `*_1` are for `batch` sequences, `*_max` for as many as fit. A budget that covers prompt and answer is
    left out: it is dense.

    Raises:
        UserError: something that the user can mend.
    """
    devices = [hardware(name, cfg.config_dirs) for name in cfg.devices]
    rows = []
    for shape in [model_shape(name, cfg.config_dirs) for name in cfg.models]:
        for length in cfg.lengths:
            if length + cfg.new > shape.positions:
                raise UserError(
                    f"lengths: {length} + new={cfg.new} exceed the {shape.positions} positions of {shape.name}"
                )
            for label, budget, use in _accounts(cfg, shape, length):
                rows += [_row(cfg, label, budget, use, device) for device in devices]
    frame = pd.DataFrame(rows)
    order = {name: place for place, name in enumerate(cfg.devices)}
    frame = frame.sort_values(SETTING[:2], key=lambda column: column.map(order).fillna(0), kind="stable")
    return frame.reset_index(drop=True)


def _accounts(cfg: RooflineConfig, shape: ModelShape, length: int) -> Iterator[tuple[str, str, Account]]:
    # after validation: it imports torch
    from kvbench.cost.accounting import account
    from kvbench.methods import build

    for label, entry in cfg.method.items():
        method = build(entry, f"method.{label}")
        budgets: list[dict[str, Any]] = [{}]
        if method.needs_budget:
            budgets = [{"tokens": n} for n in cfg.budget.tokens] + [{"ratio": r} for r in cfg.budget.ratio]
            if not budgets:
                raise UserError(f"budget: {label} needs one, give budget.tokens=[...] or budget.ratio=[...]")
        for budget in budgets:
            use = account(method, shape, prompt=length, new=cfg.new, **budget)
            if not (method.needs_budget and use.resolved.dense):
                yield label, "".join(f"{value}" for value in budget.values()), use


def _row(cfg: RooflineConfig, label: str, budget: str, use: Account, device: Hardware) -> dict[str, Any]:
    options = {"usd_per_hour": cfg.usd_per_hour, "peak": cfg.peak, "usable": cfg.usable}
    few = roofline.estimate(use, device, cfg.batch, **options)
    batch = roofline.max_batch(use, device, cfg.usable)
    most = roofline.estimate(use, device, batch, **options) if batch else None
    return {
        "model": use.shape.name,
        "device": device.name,
        "length": use.prompt,
        "new": use.new,
        "method": label,
        "budget": budget,
        "kept": use.kept,
        "resident_mb": use.resident_end / 1e6,
        "read_mb": use.mean_step().read / 1e6,
        "exact": use.exact,
        "prefill_s": few.prefill_s,
        "compress_s": few.compress_s,
        "batch": cfg.batch,
        "weights_ms": 1e3 * use.shape.weights_read(use.element) / device.bandwidth(cfg.peak),
        "step_ms": 1e3 * few.step_s,
        "fits": few.fits,
        "max_batch": batch,
        "step_ms_max": 1e3 * most.step_s if most else None,
        "tokens_per_s_max": most.tokens_per_s if most else None,
        "bound_max": most.bound if most else None,
        "usd_per_hour": few.usd_per_hour,
        "usd_per_million_tokens_max": most.usd_per_million_tokens if most else None,
        "usd_per_request_max": most.usd_per_request if most else None,
        "how": "modelled",
    }


def markdown(frame: pd.DataFrame) -> str:
    """One table per model and device."""
    lines = [
        "Every figure here is `modelled`: a lower bound on time and money, see docs/cost.md. Budgets are nominal:",
        "methods at the same number neither take the same memory nor give the same answers.",
    ]
    for (model, device), rows in frame.groupby(["model", "device"], sort=False):
        price = rows["usd_per_hour"].iloc[0]
        rent = f", ${price:.2f} per hour" if pd.notna(price) else ""
        lines += ["", f"## {model} on {device}{rent}", ""]
        lines += [
            f"| tokens | method | budget | cache MB | read MB per step | ms per token, batch {rows['batch'].iloc[0]} "
            "| largest batch | tokens/s at it | $ per million tokens | $ per 1000 requests |",
            "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [_line(row) for row in rows.sort_values("length", kind="stable").to_dict("records")]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    def number(name: str, digits: int, times: float = 1) -> str:
        return "-" if pd.isna(row[name]) else f"{times * row[name]:,.{digits}f}"

    bound = "" if row["exact"] else "≤ "
    cells = [
        str(row["length"]), row["method"], row["budget"], bound + number("resident_mb", 0),
        bound + number("read_mb", 0), number("step_ms", 2) if row["fits"] else "does not fit",
        str(row["max_batch"]), number("tokens_per_s_max", 0), number("usd_per_million_tokens_max", 3),
        number("usd_per_request_max", 3, 1000),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"
