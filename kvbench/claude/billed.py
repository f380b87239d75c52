"""The bill of a recorded trace beside its simulation as sent: what was paid, and where the two differ and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.changes import path
from kvbench.claude.placements import as_sent
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import Request, Usage
from kvbench.claude.rules import Outcome
from kvbench.claude.simulate import Simulator, Totals, Trace


@dataclass(frozen=True)
class Difference:
    """A request whose usage the rules do not reproduce.

    Attributes:
        request: id of the request.
        billed: usage that the API reported.
        modelled: usage by the rules.
        cost: billed minus modelled input cost, nano-dollars.
        why: what the difference says.
    """

    request: str
    billed: Usage
    modelled: Usage
    cost: int
    why: str


@dataclass
class Bill:
    """What a trace cost.

    Attributes:
        totals: sums of the reported usage at list prices.
        plain: the same requests without cache_control.
        requests: requests of the trace, with reported usage and without.
        differences: requests on which the simulation as sent gives another usage.
    """

    totals: Totals = field(default_factory=Totals)
    plain: Totals = field(default_factory=Totals)
    requests: int = 0
    differences: list[Difference] = field(default_factory=list)


def compare(trace: Trace, prices: PriceBook, assumptions: Assumptions | None = None) -> Bill | None:
    """The bill of a trace and its differences from the simulation; None if no request has recorded usage.

    Args:
        trace: the trace, replayed once per open point if there are differences.
        prices: the price book.
        assumptions: assumptions on undocumented points.
    """
    assumptions = assumptions or Assumptions()
    simulator = Simulator(as_sent, prices, assumptions)
    simulator.cache.keep_expired()
    bill = Bill()
    for request in trace.requests(assumptions):
        bill.requests += 1
        held = _longest(simulator, request)
        outcome = simulator.feed(request)
        usage = request.usage
        if usage is None:
            continue
        _add(bill, request, usage, prices, assumptions)
        if _tokens(usage) != _tokens(outcome.usage):
            cost = _cost(request, usage, prices, assumptions) - _cost(
                request, outcome.usage, prices, assumptions
            )
            why = _why(request, usage, outcome, held)
            bill.differences.append(Difference(request.id, usage, outcome.usage, cost, why))
    if bill.differences:
        bill.differences = _with_points(bill.differences, trace, prices, assumptions)
    return bill if bill.totals.requests else None


def _add(bill: Bill, request: Request, usage: Usage, prices: PriceBook, assumptions: Assumptions) -> None:
    for totals, spent in (
        (bill.totals, usage),
        (bill.plain, Usage(uncached=usage.total, output=usage.output)),
    ):
        paid, out = prices.cost(request, spent, unverified=assumptions.unverified_prices)
        limited = spent.total if prices.reads_limited(request.model) else spent.total - spent.read
        totals.add(Outcome(spent, None, (), False), paid, out, int(request.t // 60), limited)


def _cost(request: Request, usage: Usage, prices: PriceBook, assumptions: Assumptions) -> int:
    return prices.cost(request, usage, unverified=assumptions.unverified_prices)[0]


def _longest(simulator: Simulator, request: Request) -> dict[int, float]:
    """Expiry of every entry on the path of a request, by tokens of its prefix."""
    found: dict[int, float] = {}
    for store in simulator.cache.scope(request):
        for node in path(request.head):
            if (entry := store.get(node.cum)) is not None:
                found[node.tokens] = max(entry.expires, found.get(node.tokens, entry.expires))
    return found


def _why(request: Request, billed: Usage, outcome: Outcome, held: dict[int, float]) -> str:
    modelled = outcome.usage
    if billed.total != modelled.total:
        return f"the bill counts {billed.total} input tokens, the blocks of the trace {modelled.total}"
    if billed.read > modelled.read:
        expires = held.get(billed.read)
        if expires is None:
            return "it read what no earlier request of this trace wrote: written before the trace begins, or by others"
        if expires < request.t:
            return f"the entry lived {request.t - expires:g} s longer than its minimum lifetime"
        return "it read an entry that by these assumptions it could not find"
    if billed.read < modelled.read:
        api = f"; the API says {request.api_reason}" if request.api_reason else ""
        node = outcome.hit
        left = held.get(node.tokens) if node is not None else None
        alive = f" and lives {left - request.t:g} s more" if left is not None else ""
        return (
            f"by the rules the entry of {modelled.read} tokens is there{alive}; the API did not read it{api}"
        )
    if billed.write_5m + billed.write_1h < modelled.write_5m + modelled.write_1h:
        return "the API wrote less: a minimum, or the token count of a marked block"
    if billed.write_5m + billed.write_1h > modelled.write_5m + modelled.write_1h:
        return (
            "the API wrote more: a marker that the trace does not have, or the token count of a marked block"
        )
    return "the same tokens were written with other lifetimes"


def _with_points(
    differences: Sequence[Difference], trace: Trace, prices: PriceBook, assumptions: Assumptions
) -> list[Difference]:
    """Adds the open points that, turned alone, give the billed usage."""
    explained: dict[str, list[str]] = {}
    billed = {found.request: _tokens(found.billed) for found in differences}
    for code, _, turned in assumptions.flips():
        simulator = Simulator(as_sent, prices, turned)
        for request in trace.requests(turned):
            usage = simulator.feed(request).usage
            if billed.get(request.id) == _tokens(usage):
                explained.setdefault(request.id, []).append(code)
    return [
        Difference(
            found.request,
            found.billed,
            found.modelled,
            found.cost,
            found.why
            + (
                f"; as billed with {' or '.join(codes)} turned"
                if (codes := explained.get(found.request))
                else ""
            ),
        )
        for found in differences
    ]


def _tokens(usage: Usage) -> tuple[int, int, int, int]:
    return usage.read, usage.write_5m, usage.write_1h, usage.uncached
