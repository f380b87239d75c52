"""Configuration of `claude_replay`."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.prices import PriceBook
from kvbench.claude.traces.claude_code import Choices
from kvbench.claude.traces.open import Format
from kvbench.claude.traces.synthetic import Synthetic, SyntheticTrace
from kvbench.config.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What to replay and under which assumptions.

    Attributes:
        trace: folder or file; null replays generated conversations.
        format: what the file holds.
        placements: names of placements to compare.
        plan: also plan the cheapest placement (the trace is held in memory).
        width: states that the planner keeps.
        doctor: placement whose misses are explained, null for none.
        claude_model: model of traces that name none.
        date: day that undated traces start on.
        prices: price file or folder, null for the shipped one.
        strict: stop at the first defect of the trace.
        switches: assumptions on the undocumented points.
        choices: modelling choices of Claude Code sessions.
        synthetic: shape of generated conversations, also for the curves.
        run_dir: where the results go.
    """

    run_dir: str
    trace: str | None = None
    format: Format = "auto"
    placements: tuple[str, ...] = (
        "tools_system",
        "automatic",
        "automatic_1h",
        "explicit_four",
        "middleware_5m",
        "middleware_1h",
        "stable_1h_tail_5m",
    )
    plan: bool = True
    width: int = 12
    doctor: str | None = "automatic"
    claude_model: str = "claude-sonnet-4-6"
    date: str = "2026-11-24"
    prices: str | None = None
    strict: bool = False
    switches: Assumptions = field(default_factory=Assumptions)
    choices: Choices = field(default_factory=Choices)
    synthetic: Synthetic = field(default_factory=Synthetic)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"width: {self.width} is not allowed, give 1 or more")

    def day(self) -> datetime.date:
        """The date.

        Raises:
            UserError: not a date.
        """
        try:
            return datetime.date.fromisoformat(self.date)
        except ValueError:
            raise UserError(f"date: {self.date!r} is not a date, give it as 2026-11-24") from None

    def generated(self, spec: Synthetic, prices: PriceBook) -> SyntheticTrace:
        """Conversations of a shape, with this model, on this day.

        Raises:
            UserError: see `SyntheticTrace`.
        """
        return SyntheticTrace(spec, prices, self.claude_model, self.day())
