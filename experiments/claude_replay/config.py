"""Configuration of `claude_replay`."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.prices import PriceBook
from kvbench.claude.traces.kv_cache_tester import Choices
from kvbench.claude.traces.open import Format
from kvbench.claude.traces.synthetic import Synthetic, SyntheticTrace
from kvbench.config.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Trace, placements and assumptions of a replay.

    Attributes:
        trace: folder or file; null replays generated conversations.
        format: format of the trace.
        placements: names of placements to compare.
        plan: also plan the cheapest placement (holds the trace in memory).
        width: beam width of the planner.
        doctor: placement whose misses are explained; auto is as_sent if the trace records markers, else automatic;
            null for none.
        claude_model: model of traces without one.
        date: first day of traces without dates.
        prices: price file or folder, null for the default.
        strict: stop at the first defect of the trace.
        switches: assumptions on the undocumented points.
        choices: modelling choices of kv-cache-tester's sessions.
        synthetic: shape of generated conversations, also for the curves.
        run_dir: output folder.
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
    doctor: str | None = "auto"
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
        """The parsed date.

        Raises:
            UserError: not a date.
        """
        try:
            return datetime.date.fromisoformat(self.date)
        except ValueError:
            raise UserError(f"date: {self.date!r} is not a date, give it as 2026-11-24") from None

    def generated(self, spec: Synthetic, prices: PriceBook) -> SyntheticTrace:
        """Generated conversations with this model, starting on this date.

        Raises:
            UserError: see `SyntheticTrace`.
        """
        return SyntheticTrace(spec, prices, self.claude_model, self.day())
