"""Configuration of the experiment `roofline_check`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvbench.config.errors import UserError
from kvbench.runs.config import BudgetConfig

#: length of the short prompt that fixed costs are read from: a step over it moves next to no bytes
FIXED_LENGTH = 256


@dataclass(frozen=True, kw_only=True)
class RooflineCheckConfig:
    """Models, lengths and methods to measure.

    Attributes:
        run_dir: where the results go; points already measured there are kept.
        models: names of conf/shape, or folders with a config.json.
        lengths: prompt tokens.
        method: entries for `kvbench.methods.build`, by label.
        budget: budgets in tokens of the methods that use one.
        steps: measured decode steps.
        warmup: unmeasured steps before them.
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
