"""Configuration of the experiment `roofline`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvbench.config.errors import UserError
from kvbench.cost.roofline import USABLE
from kvbench.runs.config import BudgetConfig


@dataclass(frozen=True, kw_only=True)
class RooflineConfig:
    """Models, devices, lengths and methods to model.

    Attributes:
        run_dir: where the results go.
        models: names of conf/shape, or folders with a config.json.
        devices: names of conf/hardware, or files.
        lengths: prompt tokens.
        new: tokens generated per sequence.
        method: entries for `kvbench.methods.build`, by label.
        budget: budgets of the methods that use one.
        batch: sequences decoded together, in addition to the largest batch that fits.
        usd_per_hour: overrides the devices' rental prices.
        usable: share of a device's memory available to weights and caches.
        peak: use the datasheet rates.
        matched: a run of cells; each method gets the smallest budget that this run found within a margin of dense, and
            is left out where it found none. `budget` is not used then.
        within: that margin of the score.
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
    usable: float = USABLE
    peak: bool = False
    matched: str | None = None
    within: float = 0.05
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
