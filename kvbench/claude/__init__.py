"""Claude prompt caching: rules, dated prices, traces, and the modelled cost of each placement of cache_control."""

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.curves import break_even, by_gap, by_turn
from kvbench.claude.placements import named
from kvbench.claude.prices import PriceBook
from kvbench.claude.simulate import Trace, simulate, simulate_range
from kvbench.claude.traces.synthetic import Synthetic, SyntheticTrace

__all__ = [
    "Assumptions",
    "PriceBook",
    "Synthetic",
    "SyntheticTrace",
    "Trace",
    "break_even",
    "by_gap",
    "by_turn",
    "named",
    "simulate",
    "simulate_range",
]  # fmt: skip
