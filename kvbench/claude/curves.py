"""Cost over turns and over the gap between turns, and the break-even turn of a placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import Placement
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import Request
from kvbench.claude.simulate import ListTrace, Simulator, simulate

# seconds between turns: dense enough to locate the cliffs, with both sides of each lifetime
GAPS = tuple(
    sorted({*(float(round(10 * 540 ** (step / 60))) for step in range(61)), 299.0, 301.0, 3599.0, 3601.0})
)


def by_turn(
    turns: Sequence[Sequence[Request]],
    placements: Mapping[str, Placement],
    prices: PriceBook,
    assumptions: Assumptions | None = None,
) -> dict[str, list[int]]:
    """Cumulative cost after each turn, in nano-dollars, by placement.

    Args:
        turns: the requests of each turn of one conversation.
        placements: placements by name.
        prices: the price book.
        assumptions: assumptions on undocumented points.
    """
    curves: dict[str, list[int]] = {}
    for name, placement in placements.items():
        simulator = Simulator(placement, prices, assumptions)
        curves[name] = []
        for requests in turns:
            for request in requests:
                simulator.feed(request)
            curves[name].append(simulator.totals.cost)
    return curves


def break_even(curve: Sequence[int], plain: Sequence[int]) -> int | None:
    """First turn from which a placement stays cheaper than no caching; None if it never does."""
    cheaper = [cost < other for cost, other in zip(curve, plain, strict=True)]
    if not cheaper or not cheaper[-1]:
        return None
    not_cheaper = [turn for turn, holds in enumerate(cheaper, 1) if not holds]
    return not_cheaper[-1] + 1 if not_cheaper else 1


def by_gap(
    turns: Sequence[Sequence[Request]],
    gaps: Sequence[float],
    placements: Mapping[str, Placement],
    prices: PriceBook,
    assumptions: Assumptions | None = None,
) -> dict[str, list[int]]:
    """Cost of the same conversation for each gap between its turns, in nano-dollars, by placement.

    Args:
        turns: the requests of each turn of one conversation.
        gaps: seconds between the last request of a turn and the first of the next.
        placements: placements by name.
        prices: the price book.
        assumptions: assumptions on undocumented points.
    """
    curves: dict[str, list[int]] = {name: [] for name in placements}
    for gap in gaps:
        trace = ListTrace(spaced(turns, gap))
        for name, totals in simulate(
            trace.requests(assumptions or Assumptions()), placements, prices, assumptions
        ).items():
            curves[name].append(totals.cost)
    return curves


def spaced(turns: Sequence[Sequence[Request]], gap: float) -> list[Request]:
    """The requests with a new gap between turns; gaps within a turn are unchanged."""
    moved: list[Request] = []
    for requests in turns:
        shift = moved[-1].t + gap - requests[0].t if moved else 0.0
        moved += [replace(request, t=request.t + shift) for request in requests]
    return moved


def in_turns(requests: Sequence[Request], pause: float) -> list[list[Request]]:
    """Splits a conversation into turns where requests are at least `pause` seconds apart."""
    turns: list[list[Request]] = []
    for request in requests:
        if not turns or request.t - turns[-1][-1].t >= pause:
            turns.append([])
        turns[-1].append(request)
    return turns
