"""A cost that no legal placement can undercut: every block is planned on its own, by dynamic programming.

Whatever the markers are, at each request that contains it a block is billed as read, 5m write, 1h write or
uncached. It can be read only if it was read or written before, early enough for that response to have begun
and late enough to be alive. A block that was read may live for an hour on (a 1h marker further back in the
prompt keeps the whole prefix and bills only what is new). Dropped are the ties between blocks, the four
breakpoints and the lookback, so the sum over blocks is at most the cost of any placement, under any assumptions.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import Request
from kvbench.claude.rules import EXACT_SOURCES, UNDECIDED_SHARE

_SCALE = 1000
_State = list[tuple[int, float]]


def lower_bound(
    requests: Iterable[Request], prices: PriceBook, assumptions: Assumptions | None = None
) -> int:
    """Input cost in nano-dollars below which no placement of markers can go.

    Time and memory grow with the number of (request, block) pairs.

    Args:
        requests: the trace, in the order of the requests' start.
        prices: the price book.
        assumptions: only the unknown minimum and the unverified prices matter.
    """
    assumptions = assumptions or Assumptions()
    states: dict[tuple[str, str, int], _State] = {}
    visible: dict[tuple[str, str, int], float] = {}
    fixed = count = 0
    for request in requests:
        count += 1
        total = request.head.tokens + request.tail
        rates = prices.rates(request.model, request.t, total, unverified=assumptions.unverified_prices)
        # rounding each factor and each block down keeps it a bound
        factor = int(prices.multipliers(request, rates)[0] * _SCALE)
        base, five, hour, read = (
            factor * rate for rate in (rates.base, rates.write_5m, rates.write_1h, rates.read)
        )
        fixed += request.tail * base
        cacheable = request.head.tokens >= _smallest(request, prices, assumptions)
        t, begins = request.t, request.t + request.ttft
        node = request.head
        while node.parent is not None:
            # what the API puts before the first block is cached with it
            tokens = node.tokens - (node.parent.tokens if node.parent.index else 0)
            key = (request.workspace, request.model, node.cum)
            state = states.get(key, [(0, float("-inf"))])
            seen = visible.get(key, float("inf"))
            options = [(cost + base * tokens, expires) for cost, expires in state]
            if cacheable:
                for cost, expires in state:
                    options.append((cost + five * tokens, max(t + 300, expires)))
                    options.append((cost + hour * tokens, max(t + 3600, expires)))
                    if seen <= t <= expires:
                        options.append((cost + read * tokens, max(t + 3600, expires)))
                visible[key] = min(seen, begins)
            states[key] = _pareto(options)
            node = node.parent
    return (fixed + sum(state[0][0] for state in states.values())) // _SCALE - count


def _smallest(request: Request, prices: PriceBook, assumptions: Assumptions) -> int:
    minimum = prices.minimum(request.model, request.t, assumptions.unknown_minimum)
    return minimum if request.source in EXACT_SOURCES else minimum - minimum // UNDECIDED_SHARE


def _pareto(options: _State) -> _State:
    """Options that no other beats in both cost and expiry, cheapest first."""
    kept: _State = []
    for cost, expires in sorted(options, key=lambda option: (option[0], -option[1])):
        if not kept or expires > kept[-1][1]:
            kept.append((cost, expires))
    return kept
