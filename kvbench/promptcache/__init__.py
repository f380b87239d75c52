"""Claude prompt caching: rules, dated prices, traces, and what each placement of cache_control costs (modelled)."""

from kvbench.promptcache.curves import break_even, by_gap, by_turn
from kvbench.promptcache.placements import named
from kvbench.promptcache.prices import PriceBook
from kvbench.promptcache.simulate import Trace, simulate, simulate_range
from kvbench.promptcache.switches import Switches
from kvbench.promptcache.traces.synthetic import Synthetic, SyntheticTrace

__all__ = [
    "PriceBook", "Switches", "Synthetic", "SyntheticTrace", "Trace", "break_even", "by_gap", "by_turn", "named",
    "simulate", "simulate_range",
]  # fmt: skip
