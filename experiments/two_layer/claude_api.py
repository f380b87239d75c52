"""Layer 1: cost of the sessions at the API under every placement of cache_control."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import Placement, named
from kvbench.claude.planner import plan
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import Request
from kvbench.claude.simulate import Trace, simulate_range
from kvbench.claude.tables import usd
from kvbench.experiments.two_layer.config import TwoLayerConfig

PLANNER = "planner"


@dataclass(frozen=True)
class PlacementCost:
    """Modelled dollars per session under one placement.

    Attributes:
        name: name of the placement.
        usd: cost under the configured assumptions.
        low: lowest cost over the open points.
        high: highest cost over the open points.
        read: share of the input tokens read from the cache.
    """

    name: str
    usd: float
    low: float
    high: float
    read: float


def cheapest(priced: Sequence[PlacementCost]) -> PlacementCost:
    """The cheapest placement that can be chosen in advance; the planned one needs the whole trace."""
    return min((found for found in priced if found.name != PLANNER), key=lambda found: found.usd)


class LongerAnswers(Trace):
    """A trace with longer answers; the prompts stay as recorded."""

    def __init__(self, trace: Trace, times: int) -> None:
        """Wraps a trace; answers get `times` times as many tokens."""
        self._trace = trace
        self._times = times

    def requests(self, assumptions: Assumptions) -> Iterable[Request]:
        """See Trace."""
        for request in self._trace.requests(assumptions):
            yield replace(request, output=request.output * self._times)


class OtherModel(Trace):
    """A trace sent to another model; token counts stay as recorded."""

    def __init__(self, trace: Trace, model: str) -> None:
        """Wraps a trace."""
        self._trace = trace
        self._model = model

    def requests(self, assumptions: Assumptions) -> Iterable[Request]:
        """See Trace."""
        for request in self._trace.requests(assumptions):
            yield replace(request, model=self._model)


def price(trace: Trace, cfg: TwoLayerConfig, prices: PriceBook, count: int) -> list[PlacementCost]:
    """Prices every placement, in the order of the configuration, the planned one last.

    Args:
        trace: the sessions.
        cfg: names the placements.
        prices: the price book.
        count: number of sessions in the trace.
    """
    placements: dict[str, Placement] = {name: named(name) for name in cfg.placements}
    if cfg.plan:
        found = plan(trace.requests(cfg.switches), prices, cfg.switches, fixed=dict(placements))
        placements[PLANNER] = found.placement
    ranges = simulate_range(trace, placements, prices, cfg.switches)
    return [
        PlacementCost(
            name,
            usd(found.base.cost) / count,
            usd(found.low) / count,
            usd(found.high) / count,
            found.base.hit_rate,
        )
        for name, found in ranges.items()
    ]
