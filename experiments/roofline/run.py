"""The experiment `roofline`: every model, device, length, method and budget of a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from kvbench.config.errors import UserError
from kvbench.cost import roofline
from kvbench.cost.hardware import Hardware, hardware
from kvbench.cost.shapes import ModelShape, model_shape
from kvbench.experiments.roofline.config import RooflineConfig
from kvbench.experiments.roofline.matched import matched_budgets
from kvbench.runs.progress import ProgressFactory, staged

if TYPE_CHECKING:
    from kvbench.cost.accounting import Account


def scan(cfg: RooflineConfig, progress: ProgressFactory) -> pd.DataFrame:
    """One row per model, device, length, method and budget; every figure is `modelled`.

    `step_ms`, `fits` and `usd_per_million_whole` are for `batch` sequences, columns `*_max` for as many as fit: no load
    is modelled. `*_decode_max` is decoding alone, `*_whole*` prefill, compression and decoding. A budget that covers
    prompt and answer is left out: it equals dense.

    Args:
        cfg: the configuration.
        progress: makes the progress display; a length of a model has a line.

    Raises:
        UserError: an unknown name, a length beyond the model's positions, or a missing budget.
    """
    devices = [hardware(name, cfg.config_dirs) for name in cfg.devices]
    matched = matched_budgets(cfg) if cfg.matched else None
    points = [(model_shape(name, cfg.config_dirs), length) for name in cfg.models for length in cfg.lengths]
    for shape, length in points:
        if length + cfg.new > shape.positions:
            raise UserError(
                f"lengths: {length} + new={cfg.new} exceed the {shape.positions} positions of {shape.name}"
            )
    rows = []
    with staged(progress, [f"{shape.name} {length}" for shape, length in points]) as begin:
        for shape, length in points:
            begin()
            for label, budget, account in _accounts(cfg, shape, length, matched):
                rows += [_row(cfg, label, budget, account, device) for device in devices]
    frame = pd.DataFrame(rows)
    order = {name: index for index, name in enumerate(cfg.devices)}
    frame = frame.sort_values(
        ["model", "device"], key=lambda column: column.map(order).fillna(0), kind="stable"
    )
    if cfg.matched:
        frame["matched"] = f"{cfg.matched}, within {cfg.within:g}"
    return frame.reset_index(drop=True)


def _accounts(
    cfg: RooflineConfig,
    shape: ModelShape,
    length: int,
    matched: Mapping[str, list[dict[str, Any]]] | None,
) -> Iterator[tuple[str, str, Account]]:
    # imports torch, so only after validation
    from kvbench.cost import accounting
    from kvbench.methods import build

    for label, entry in cfg.method.items():
        method = build(entry, f"method.{label}")
        budgets = _budgets(cfg, label, method.needs_budget) if matched is None else matched.get(label, [])
        for budget in budgets:
            account = accounting.account(method, shape, prompt=length, new=cfg.new, **budget)
            if not (method.needs_budget and account.resolved.dense):
                yield label, "".join(f"{value}" for value in budget.values()), account


def _budgets(cfg: RooflineConfig, label: str, needed: bool) -> list[dict[str, Any]]:
    """The configured budgets of a method, as keywords of `accounting.account`."""
    if not needed:
        return [{}]
    budgets = [{"tokens": n} for n in cfg.budget.tokens] + [{"ratio": r} for r in cfg.budget.ratio]
    if not budgets:
        raise UserError(f"budget: {label} needs one, give budget.tokens=[...] or budget.ratio=[...]")
    return budgets


def _row(cfg: RooflineConfig, label: str, budget: str, account: Account, device: Hardware) -> dict[str, Any]:
    options = {"usd_per_hour": cfg.usd_per_hour, "peak": cfg.peak, "usable": cfg.usable}
    at_batch = roofline.estimate(account, device, cfg.batch, **options)
    max_batch = roofline.max_batch(account, device, cfg.usable)
    at_max = roofline.estimate(account, device, max_batch, **options) if max_batch else None
    return {
        "model": account.shape.name,
        "device": device.name,
        "length": account.prompt,
        "new": account.new,
        "method": label,
        "budget": budget,
        "kept": account.kept,
        "resident_mb": account.resident_end / 1e6,
        "read_mb": account.mean_step().read / 1e6,
        "exact": account.exact,
        "prefill_s": at_batch.prefill_s,
        "compress_s": at_batch.compress_s,
        "batch": cfg.batch,
        "weights_ms": 1e3 * account.shape.weights_read(account.element) / device.bandwidth(cfg.peak),
        "step_ms": 1e3 * at_batch.step_s,
        "fits": at_batch.fits,
        "max_batch": max_batch,
        "step_ms_max": 1e3 * at_max.step_s if at_max else None,
        "tokens_per_s_max": at_max.tokens_per_s if at_max else None,
        "bound_max": at_max.bound if at_max else None,
        "usd_per_hour": at_batch.usd_per_hour,
        "rent": _rent_note(cfg, device),
        "usd_per_million_decode_max": at_max.usd_per_million_decode if at_max else None,
        "usd_per_million_whole": at_batch.usd_per_million_whole if max_batch >= cfg.batch else None,
        "usd_per_million_whole_max": at_max.usd_per_million_whole if at_max else None,
        "usd_per_request_max": at_max.usd_per_request if at_max else None,
        "how": "modelled",
    }


def _rent_note(cfg: RooflineConfig, device: Hardware) -> str:
    return device.rent_note if cfg.usd_per_hour is None else "as given"
