"""Lower bound on the cost of any legal placement: every block is planned on its own, by dynamic programming.

With any markers, each request bills each of its blocks as read, 5m write, 1h write or uncached. A block can be read
only if an earlier request read or wrote it, whose response had begun by then and whose entry is still alive. A block
that was read may live for another hour (a 1h marker further back in the prompt keeps the whole prefix and bills only
what is new). The bound ignores the dependence between blocks, the limit of four breakpoints and the lookback, so the
sum over blocks is at most the cost of any placement, under any assumptions.
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
    """Lower bound on the input cost of any placement of markers, in nano-dollars.

    Time and memory grow with the number of (request, block) pairs.

    Args:
        requests: the trace, ordered by start time.
        prices: the price book.
        assumptions: only `unknown_minimum` and `unverified_prices` have an effect.
    """
    assumptions = assumptions or Assumptions()
    states: dict[tuple[str, str, int], _State] = {}
    visible: dict[tuple[str, str, int], float] = {}
    fixed = count = 0
    for request in requests:
        count += 1
        total = request.head.tokens + request.tail
        rates = prices.rates(request.model, request.t, total, unverified=assumptions.unverified_prices)
        # rounding each factor and each block down preserves the bound
        factor = int(prices.multipliers(request, rates)[0] * _SCALE)
        base, five, hour, read = (
            factor * rate for rate in (rates.base, rates.write_5m, rates.write_1h, rates.read)
        )
        fixed += request.tail * base
        cacheable = request.head.tokens >= _smallest(request, prices, assumptions)
        t, begins = request.t, request.t + request.ttft
        node = request.head
        while node.parent is not None:
            # the API's own tokens before the first block are cached with it
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
    """Pareto-optimal options in cost and expiry, cheapest first."""
    kept: _State = []
    for cost, expires in sorted(options, key=lambda option: (option[0], -option[1])):
        if not kept or expires > kept[-1][1]:
            kept.append((cost, expires))
    return kept
