"""Statements about Claude's prompt cache, against the price book, the rule engine and published measurements."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

from kvbench.claims.claim import Finding, Reading
from kvbench.claude import article
from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import named
from kvbench.claude.prices import NANO, PriceBook, Rates
from kvbench.claude.request import (
    MESSAGES,
    TEXT,
    TOOL_RESULT,
    TOOL_USE,
    ContentBlock,
    Hashing,
    Marker,
    Node,
    Request,
    append,
    root,
)
from kvbench.claude.rules import Cache, marker_error
from kvbench.claude.traces.synthetic import Synthetic, SyntheticTrace
from kvbench.config.errors import UserError

Kind = Literal["base", "write_5m", "write_1h", "read", "output"]
SONNET, TODAY = "claude-sonnet-4-6", datetime.date(2026, 11, 24)
FIVE, HOUR = 300, 3600


def price(kind: Kind, model: str = SONNET, date: datetime.date = TODAY) -> Finding:
    """Dollars per million tokens."""
    value = getattr(_rates(_prices(), model, date), kind) / 1000
    return Finding((Reading(value=value, basis="formula"),))


def price_multiple(kind: Kind, of: Kind = "base", models: Sequence[str] = ()) -> Finding:
    """A price as a multiple of another one; the lowest first if models differ.

    Args:
        kind: the price.
        of: the reference price.
        models: models to include; all if empty.
    """
    prices = _prices()
    found: dict[float, list[str]] = {}
    for model in models or prices.models():
        rates = _rates(prices, model, TODAY)
        found.setdefault(getattr(rates, kind) / getattr(rates, of), []).append(model)
    readings = [
        Reading(name=", ".join(found[v]) if len(found[v]) < 4 else f"{len(found[v])} models", value=v,
                basis="formula")
        for v in sorted(found)
    ]  # fmt: skip
    return Finding(tuple(readings))


def price_reduction(kind: Kind, model: str = SONNET) -> Finding:
    """Reduction of a price against the base price, in percent."""
    rates = _rates(_prices(), model, TODAY)
    value = 100 * (1 - getattr(rates, kind) / rates.base)
    return Finding((Reading(value=value, basis="formula"),))


def item_cost(tokens: int, kind: Kind, model: str = SONNET) -> Finding:
    """Dollars for a number of tokens."""
    value = tokens * getattr(_rates(_prices(), model, TODAY), kind) / NANO
    return Finding((Reading(value=value, basis="formula"),))


def break_even(kind: Literal["write_5m", "write_1h"]) -> Finding:
    """Smallest number of uses of a prefix at which caching it is cheaper, over all models."""
    prices = _prices()
    uses: dict[int, list[str]] = {}
    for model in prices.models():
        rates = _rates(prices, model, TODAY)
        first = next(n for n in range(1, 100) if getattr(rates, kind) + (n - 1) * rates.read < n * rates.base)
        uses.setdefault(first, []).append(model)
    readings = [
        Reading(name=f"{len(models)} models", value=n, basis="formula") for n, models in sorted(uses.items())
    ]
    return Finding(tuple(readings))


def page_minimum(model: str, date: datetime.date) -> Finding:
    """The documented minimum prefix on a date, from the price book."""
    return Finding((Reading(value=_prices().minimum(model, _t(date)), basis="formula"),))


def measured_minimum(cached: int, uncached: int | None = None, about: bool = False) -> Finding:
    """The smallest cacheable prefix, as measured by others.

    Args:
        cached: shortest prefix observed to be cached, or the reported figure.
        uncached: longest prefix observed not to be cached.
        about: only a rounded figure was reported.
    """
    low = None if uncached is None else uncached + 1
    name = "reported by users, rounded" if about else "between a miss and a hit on the real API"
    return Finding((Reading(name=name, value=cached, low=low, high=cached, basis="measured"),))


def real_api_run(
    ttl: Literal["5m", "1h"], prefix: int, uncached: int, offsets: Sequence[int], date: datetime.date
) -> Finding:
    """Dollars of requests with the same marked prefix, from the rule engine, for a known bill of the API."""
    prices, cache, cost = _prices(), Cache(), 0
    nodes = _chain([(TEXT, prefix), (TEXT, uncached)])
    for offset in offsets:
        request = _request(nodes[-1], _t(date) + offset)
        marker = (nodes[0], FIVE if ttl == "5m" else HOUR)
        outcome = cache.serve(request, [marker], prices.minimum(SONNET, request.t))
        cost += prices.cost(request, outcome.usage)[0]
    return Finding((Reading(name="rule engine", value=cost / NANO, basis="modelled"),))


def most_breakpoints() -> Finding:
    """Maximum number of breakpoints of a request."""
    nodes = _chain([(TEXT, 10)] * 10)
    allowed = [n for n in range(1, 10) if not marker_error([(node, FIVE) for node in nodes[:n]])]
    return Finding((Reading(name="rule engine", value=max(allowed), basis="modelled"),))


def lookback_example(writes: Sequence[int], breakpoints: Sequence[int]) -> Finding:
    """The last block that is read in the page's example.

    Args:
        writes: blocks that earlier requests marked.
        breakpoints: blocks that the request marks.
    """
    nodes, cache = _chain([(TEXT, 100)] * max(*writes, *breakpoints)), Cache()
    for t, block in enumerate(writes):
        cache.serve(_request(nodes[block - 1], t), [(nodes[block - 1], FIVE)], 0)
    markers: list[Marker] = [(nodes[block - 1], FIVE) for block in breakpoints]
    usage = cache.serve(_request(nodes[breakpoints[-1] - 1], len(writes)), markers, 0).usage
    return Finding((Reading(name="rule engine", value=usage.read / 100, basis="modelled"),))


def lookback_positions(hit: int, missed: int) -> Finding:
    """Length of the lookback, under the interpretations of the documentation that agree with a measurement.

    Args:
        hit: number of messages, each one run of tool blocks, across which an entry was found.
        missed: number of messages, each of one block, across which it was not found.
    """
    fits = [
        assumptions
        for assumptions in (Assumptions(lookback="counted"), Assumptions(lookback="before"))
        if _found(assumptions, hit, 6) and not _found(assumptions, missed, 1)
    ]
    found = []
    for assumptions in fits:
        cache = Cache(assumptions)
        found += [
            Reading(
                name="the breakpoint included, as the page counts", value=cache.lookback, basis="modelled"
            ),
            Reading(name="before the breakpoint", value=cache.lookback - 1, basis="modelled"),
        ]
    return Finding(tuple(found), "; ".join(f"fits the measurement: lookback={s.lookback}" for s in fits))


def usage_example(part: Literal["read", "write_5m", "write_1h", "created"]) -> Finding:
    """The page's usage example: a hit of 1,800 tokens, then 100 tokens with 1h and 148 with 5m."""
    cache = Cache()
    nodes = _chain([(TEXT, 1800), (TEXT, 100), (TEXT, 148)])
    cache.serve(_request(nodes[0], 0), [(nodes[0], HOUR)], 1024)
    usage = cache.serve(_request(nodes[2], 1), [(nodes[1], HOUR), (nodes[2], FIVE)], 1024).usage
    value = usage.write_5m + usage.write_1h if part == "created" else getattr(usage, part)
    return Finding((Reading(name="rule engine", value=value, basis="modelled"),))


def parallel_hits(requests: int) -> Finding:
    """Hits among requests with the same prefix that start before the first response begins."""
    cache, nodes = Cache(), _chain([(TEXT, 5000)])
    usages = [
        cache.serve(_request(nodes[0], 0.1 * n, ttft=2.0), [(nodes[0], FIVE)], 1024).usage
        for n in range(requests)
    ]
    return Finding((Reading(name="rule engine", value=sum(u.read > 0 for u in usages), basis="modelled"),))


def cached_below_minimum(tokens: int) -> Finding:
    """Tokens written or read when a short prompt with a marker is sent twice; no error is raised."""
    prices, cache, nodes = _prices(), Cache(), _chain([(TEXT, tokens)])
    minimum = prices.minimum(SONNET, _t(TODAY))
    usages = [cache.serve(_request(nodes[0], t), [(nodes[0], FIVE)], minimum).usage for t in (0, 1)]
    value = sum(usage.total - usage.uncached for usage in usages)
    return Finding((Reading(name="rule engine", value=value, basis="modelled"),))


def article_total(case: str) -> Finding:
    """Dollars of the article's ten turns, under one of the cases of `kvbench.claude.article`."""
    value = article.cost(_case(case), _prices()) / NANO
    printed = _case(case).printed
    note = ""
    if printed is not None and printed != round(value * NANO):
        share = printed / article.ARTICLE_PLAIN
        note = f"{printed / NANO:g} is {share:g} of the uncached total: computed back from the percentage"
    return Finding((Reading(name=_case(case).meaning, value=value, basis="modelled"),), note)


def article_saving(cases: Sequence[str]) -> Finding:
    """Saving against no caching in percent (negative: a loss), per case of the article's ten turns."""
    prices = _prices()
    plain = article.cost(_case("no cache"), prices)
    found = [
        Reading(
            name=_case(name).meaning,
            value=100 * (1 - article.cost(_case(name), prices) / plain),
            basis="modelled",
        )
        for name in cases
    ]
    return Finding(tuple(found))


def model_exists(model: str) -> Finding:
    """Whether the price book has a model id: 1 or 0."""
    prices = _prices()
    try:
        note, there = f"is {prices.resolve(model)}", 1.0
    except UserError as error:
        note, there = str(error), 0.0
    return Finding((Reading(value=there, basis="formula"),), note)


def placement_breakpoints(placement: str) -> Finding:
    """Number of breakpoints that a placement sets on a prompt with tools, system prompt and two turns."""
    prices = _prices()
    *_, last = SyntheticTrace(Synthetic(turns=2), prices).requests(Assumptions())
    found = len(named(placement)(last))
    return Finding((Reading(name=f"placement {placement}", value=found, basis="modelled"),))


def _found(assumptions: Assumptions, messages: int, run: int) -> bool:
    """Whether an entry is found across `messages` messages of `run` tool blocks each."""
    cache = Cache(assumptions)
    kinds = [(TOOL_USE, TOOL_RESULT)[n % 2] for n in range(messages) for _ in range(run)]
    nodes = _chain([(TEXT, 100), *((kind, 100) for kind in kinds)])
    cache.serve(_request(nodes[0], 0), [(nodes[0], FIVE)], 0)
    return cache.serve(_request(nodes[-1], 1), [(nodes[-1], FIVE)], 0).usage.read > 0


def _case(name: str) -> article.Case:
    known: Mapping[str, article.Case] = {case.name: case for case in article.cases()}
    return known[name]


@functools.cache
def _prices() -> PriceBook:
    return PriceBook.load()


def _rates(prices: PriceBook, model: str, date: datetime.date) -> Rates:
    return prices.rates(model, _t(date), 1000)


def _t(date: datetime.date) -> float:
    return datetime.datetime.combine(date, datetime.time(), datetime.UTC).timestamp()


def _chain(blocks: Sequence[tuple[int, int]]) -> list[Node]:
    """A chain of message blocks, given by kind and tokens."""
    node, nodes = root(), []
    for number, (kind, tokens) in enumerate(blocks):
        node = append(
            node, ContentBlock(MESSAGES, kind, number, tokens, message=number), Hashing(), (0, 0, 0)
        )
        nodes.append(node)
    return nodes


def _request(head: Node, t: float, ttft: float = 0.0) -> Request:
    return Request(id=f"{t}", t=t, model=SONNET, head=head, ttft=ttft, source="usage")
