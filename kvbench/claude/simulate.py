"""Replays a trace under placements and assumptions, in constant memory; results are costs and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import Placement
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import Request
from kvbench.claude.rules import Cache, Outcome, marker_error
from kvbench.config.errors import UserError


@dataclass(slots=True)
class Totals:
    """Sums over a trace: costs in nano-dollars, tokens by billing class.

    `peak_itpm` is the maximum of input tokens per clock minute that count towards the rate limit: cache reads do not,
    on all models but one (R23).
    """

    requests: int = 0
    hits: int = 0
    undecided: int = 0
    read: int = 0
    write_5m: int = 0
    write_1h: int = 0
    uncached: int = 0
    output: int = 0
    input_cost: int = 0
    output_cost: int = 0
    peak_itpm: int = 0
    _minute: int = 0
    _itpm: int = 0

    def add(self, outcome: Outcome, input_cost: int, output_cost: int, minute: int, limited: int) -> None:
        """Adds one request.

        Args:
            outcome: result of the rule engine.
            input_cost: nano-dollars.
            output_cost: nano-dollars.
            minute: minute of its start, since the epoch.
            limited: its input tokens that count towards the rate limit.
        """
        usage = outcome.usage
        self._itpm = self._itpm + limited if minute == self._minute else limited
        self._minute = minute
        self.peak_itpm = max(self.peak_itpm, self._itpm)
        self.requests += 1
        self.hits += usage.read > 0
        self.undecided += outcome.undecided
        self.read += usage.read
        self.write_5m += usage.write_5m
        self.write_1h += usage.write_1h
        self.uncached += usage.uncached
        self.output += usage.output
        self.input_cost += input_cost
        self.output_cost += output_cost

    @property
    def total(self) -> int:
        """All input tokens."""
        return self.read + self.write_5m + self.write_1h + self.uncached

    @property
    def cost(self) -> int:
        """Input and output, nano-dollars."""
        return self.input_cost + self.output_cost

    @property
    def hit_rate(self) -> float:
        """Share of the input tokens that were read from the cache."""
        return self.read / self.total if self.total else 0.0


class Simulator:
    """One placement under one set of assumptions; requests must be fed in order of start time."""

    def __init__(
        self, placement: Placement, prices: PriceBook, assumptions: Assumptions | None = None
    ) -> None:
        """A simulator with an empty cache."""
        self.placement = placement
        self.prices = prices
        self.assumptions = assumptions or Assumptions()
        self.cache = Cache(self.assumptions)
        self.totals = Totals()

    def feed(self, request: Request) -> Outcome:
        """Serves one request and adds it to the totals.

        Raises:
            UserError: unknown model, no price for its date, or an illegal placement.
        """
        minimum = self.prices.minimum(request.model, request.t, self.assumptions.unknown_minimum)
        markers = self.placement(request)
        if wrong := marker_error(markers):
            raise UserError(f"request {request.id}: {wrong}")
        outcome = self.cache.serve(request, markers, minimum)
        paid, out = self.prices.cost(request, outcome.usage, unverified=self.assumptions.unverified_prices)
        usage = outcome.usage
        limited = usage.total if self.prices.reads_limited(request.model) else usage.total - usage.read
        self.totals.add(outcome, paid, out, int(request.t // 60), limited)
        return outcome


def simulate(
    requests: Iterable[Request],
    placements: Mapping[str, Placement],
    prices: PriceBook,
    assumptions: Assumptions | None = None,
) -> dict[str, Totals]:
    """Replays a trace once under several placements.

    Args:
        requests: the trace, ordered by start time.
        placements: placements by name.
        prices: the price book.
        assumptions: assumptions on undocumented points.
    """
    simulators = {name: Simulator(placement, prices, assumptions) for name, placement in placements.items()}
    feeds = [simulator.feed for simulator in simulators.values()]
    for request in requests:
        for feed in feeds:
            feed(request)
    return {name: simulator.totals for name, simulator in simulators.items()}


@dataclass
class Range:
    """Result of a placement under the given assumptions, and its range over the open points.

    Attributes:
        base: totals under the given assumptions.
        flips: change of the cost when one open point is changed to its alternative, nano-dollars, by code.
        low: lowest cost found, including all points that lower it changed together.
        high: highest cost found, likewise.
    """

    base: Totals
    flips: dict[str, int] = field(default_factory=dict)
    low: int = 0
    high: int = 0


class Trace:
    """A trace that can be replayed repeatedly; its prefix hashes may depend on the assumptions."""

    def requests(self, assumptions: Assumptions) -> Iterable[Request]:
        """The requests in order of start time, with chains built under these assumptions."""
        raise NotImplementedError


class ListTrace(Trace):
    """An in-memory trace whose chains do not depend on the assumptions."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """Stores the requests, ordered by start time."""
        self._requests = requests

    def requests(self, assumptions: Assumptions) -> Iterable[Request]:
        """See Trace."""
        return self._requests


def simulate_range(
    trace: Trace,
    placements: Mapping[str, Placement],
    prices: PriceBook,
    assumptions: Assumptions | None = None,
    begin: Callable[[], None] = lambda: None,
) -> dict[str, Range]:
    """Results as ranges over the assumptions, not as points.

    Every point is turned alone; then all points that alone lower (raise) a placement's cost are turned
    together. The ends are those found: points that only act in combination may lie outside.

    Args:
        trace: the requests.
        placements: by name.
        prices: of the models.
        assumptions: how the open points are taken; the default reading of each.
        begin: called before the simulation as assumed, and before that of each open point.
    """
    assumptions = assumptions or Assumptions()
    begin()
    base = simulate(trace.requests(assumptions), placements, prices, assumptions)
    ranges = {name: Range(totals) for name, totals in base.items()}
    changed: dict[str, Assumptions] = {}
    for code, _, flipped in assumptions.flips():
        changed[code] = flipped
        begin()
        for name, totals in simulate(trace.requests(flipped), placements, prices, flipped).items():
            ranges[name].flips[code] = totals.cost - base[name].cost
    for name, placement in placements.items():
        found = [base[name].cost] + [base[name].cost + delta for delta in ranges[name].flips.values()]
        for sign in (-1, 1):
            chosen = [code for code, delta in ranges[name].flips.items() if delta * sign > 0]
            if len(chosen) > 1:
                combined = assumptions.combined([changed[code] for code in chosen])
                found.append(
                    simulate(trace.requests(combined), {name: placement}, prices, combined)[name].cost
                )
        ranges[name].low, ranges[name].high = min(found), max(found)
    return ranges
