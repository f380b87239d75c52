"""Statements about Claude's prompt cache, against the price book, the rule engine and published measurements."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

from kvbench.claims.claim import Finding, Reading
from kvbench.claude import article
from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import named
from kvbench.claude.price_file import Rates
from kvbench.claude.prices import NANO, PriceBook
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


def price_multiple(kind: Kind, date: datetime.date, models: Sequence[str], of: Kind = "base") -> Finding:
    """A price as a multiple of another one: for the models of a page, on its date; besides, for all models today.

    Args:
        kind: the price.
        date: the date of the page.
        models: the models of its list.
        of: the reference price.
    """
    prices = _prices()
    then, now = _multiples(kind, of, date, models), _multiples(kind, of, TODAY, prices.models())
    readings = [
        Reading(name=f"{_models(names)} on {date}", value=v, basis="formula")
        for v, names in sorted(then.items())
    ]
    if now != then:
        readings += [
            Reading(name=f"{_models(names)} on {TODAY}", value=v, basis="formula", beside=True)
            for v, names in sorted(now.items())
        ]
    return Finding(tuple(readings))


def write_multiple(model: str = SONNET) -> Finding:
    """What writing for an hour costs: times the price of writing for five minutes, and times the base price."""
    rates = _rates(_prices(), model, TODAY)
    return Finding(
        (
            Reading(
                name="over writing for 5 minutes", value=rates.write_1h / rates.write_5m, basis="formula"
            ),
            Reading(name="over the base price", value=rates.write_1h / rates.base, basis="formula"),
        )
    )


def price_reduction(kind: Kind, model: str = SONNET) -> Finding:
    """Reduction of a price against the base price, in percent."""
    rates = _rates(_prices(), model, TODAY)
    value = 100 * (1 - getattr(rates, kind) / rates.base)
    return Finding((Reading(value=value, basis="formula"),))


def item_costs(items: Mapping[str, Sequence[float]], model: str = SONNET) -> Finding:
    """Whether the dollars of items are as printed.

    Args:
        items: tokens, and the printed dollars without cache, at first and from then on, by name.
        model: the model.
    """
    rates = _rates(_prices(), model, TODAY)
    wrong = [
        f"{name}: ${tokens * rate / NANO:g} against ${printed:g}"
        for name, (tokens, *dollars) in items.items()
        for rate, printed in zip((rates.base, rates.write_5m, rates.read), dollars, strict=True)
        if abs(tokens * rate / NANO - printed) > 1e-9
    ]
    count = 3 * len(items)
    name = f"{count - len(wrong)} of {count} are as printed"
    return Finding((Reading(name=name, value=float(not wrong), basis="formula"),), "; ".join(wrong))


def break_even(kind: Literal["write_5m", "write_1h"]) -> Finding:
    """Smallest number of reads after which caching a prefix is cheaper, from the printed prices of all models."""
    prices = _prices()
    reads: dict[int, list[str]] = {}
    for model in prices.models():
        rates = _rates(prices, model, TODAY)
        least = next(n for n in range(100) if getattr(rates, kind) + n * rates.read < (n + 1) * rates.base)
        reads.setdefault(least, []).append(model)
    readings = [
        Reading(name=f"{len(models)} models", value=n, basis="printed") for n, models in sorted(reads.items())
    ]
    return Finding(tuple(readings))


def page_minimum(model: str, dates: Sequence[datetime.date]) -> Finding:
    """The documented minimum prefix, from the price book: on the first date, besides on the others."""
    found = [
        Reading(
            name=f"on {date}",
            value=_prices().minimum(model, _t(date)),
            basis="formula",
            beside=date != dates[0],
        )
        for date in dates
    ]
    return Finding(tuple(found))


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


def lookback_example(writes: Sequence[int], breakpoints: Sequence[int], found: int) -> Finding:
    """Whether the page's example reads up to the block that it says: 1 or 0.

    Args:
        writes: blocks that earlier requests marked.
        breakpoints: blocks that the request marks.
        found: last block that is read, as printed; 0 for none.
    """
    nodes, cache = _chain([(TEXT, 100)] * max(*writes, *breakpoints)), Cache()
    for t, block in enumerate(writes):
        cache.serve(_request(nodes[block - 1], t), [(nodes[block - 1], FIVE)], 0)
    markers: list[Marker] = [(nodes[block - 1], FIVE) for block in breakpoints]
    usage = cache.serve(_request(nodes[breakpoints[-1] - 1], len(writes)), markers, 0).usage
    name = f"{usage.read // 100} blocks are read"
    return Finding((Reading(name=name, value=float(usage.read == 100 * found), basis="modelled"),))


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


def usage_example(printed: Mapping[str, int]) -> Finding:
    """Whether the page's usage example comes out: a hit of 1,800 tokens, then 100 tokens with 1h and 148 with 5m.

    Args:
        printed: tokens by part: `read`, `write_5m`, `write_1h`, `created`.
    """
    cache = Cache()
    nodes = _chain([(TEXT, 1800), (TEXT, 100), (TEXT, 148)])
    cache.serve(_request(nodes[0], 0), [(nodes[0], HOUR)], 1024)
    usage = cache.serve(_request(nodes[2], 1), [(nodes[1], HOUR), (nodes[2], FIVE)], 1024).usage
    ours = {"read": usage.read, "write_5m": usage.write_5m, "write_1h": usage.write_1h}
    ours["created"] = usage.write_5m + usage.write_1h
    name = ", ".join(f"{part} {ours[part]:,}" for part in printed)
    right = all(ours[part] == tokens for part, tokens in printed.items())
    return Finding((Reading(name=name, value=float(right), basis="modelled"),))


def parallel_misses(requests: int) -> Finding:
    """Whether requests with the same prefix that start before the first response begins all miss: 1 or 0."""
    cache, nodes = Cache(), _chain([(TEXT, 5000)])
    usages = [
        cache.serve(_request(nodes[0], 0.1 * n, ttft=2.0), [(nodes[0], FIVE)], 1024).usage
        for n in range(requests)
    ]
    hits = sum(usage.read > 0 for usage in usages)
    name = f"{hits} of {requests} hit"
    return Finding((Reading(name=name, value=float(hits == 0), basis="modelled"),))


def not_cached_below_minimum(tokens: int) -> Finding:
    """Whether a short prompt with a marker, sent twice, is neither written nor read, without an error: 1 or 0."""
    prices, cache, nodes = _prices(), Cache(), _chain([(TEXT, tokens)])
    minimum = prices.minimum(SONNET, _t(TODAY))
    usages = [cache.serve(_request(nodes[0], t), [(nodes[0], FIVE)], minimum).usage for t in (0, 1)]
    cached = sum(usage.total - usage.uncached for usage in usages)
    name = f"{cached} tokens written or read"
    return Finding((Reading(name=name, value=float(cached == 0), basis="modelled"),))


def article_total(case: str) -> Finding:
    """Dollars of the article's ten turns, under one of the cases of `kvbench.claude.article`."""
    value = article.cost(_case(case), _prices()) / NANO
    printed = _case(case).printed
    note = ""
    if printed is not None and printed != round(value * NANO):
        share = printed / article.ARTICLE_PLAIN
        note = f"{printed / NANO:g} is {share:g} of the uncached total: computed back from the percentage"
    return Finding((Reading(name=_case(case).meaning, value=value, basis="modelled"),), note)


def article_saving(cases: Sequence[str], besides: Sequence[str] = (), tool_tokens: int = 0) -> Finding:
    """Saving against no caching in percent (negative: a loss), per case of the article's ten turns.

    Args:
        cases: names of cases.
        besides: names of cases that are not a way to read the claim.
        tool_tokens: include the last of `besides` with tool definitions of this size.
    """
    found = [_saving(_case(name), beside=name in besides) for name in (*cases, *besides)]
    if tool_tokens:
        found.append(_saving(dataclasses.replace(_case(besides[-1]), tool_tokens=tool_tokens), beside=True))
    return Finding(tuple(found))


def model_exists(model: str) -> Finding:
    """Whether the price book has a model id: 1 or 0."""
    prices = _prices()
    try:
        note, there = f"is {prices.resolve(model)}", 1.0
    except UserError as error:
        note, there = str(error), 0.0
    return Finding((Reading(value=there, basis="formula"),), note)


def marks_the_last_block(then: Mapping[str, str], now: Mapping[str, str]) -> Finding:
    """Whether a middleware sets one marker, on the last block of a prompt with tools, system prompt and two turns.

    Args:
        then: the placement of the version at the time of the claim, by the version's name.
        now: those of later versions, which do not decide.
    """
    *_, last = SyntheticTrace(Synthetic(turns=2), _prices()).requests(Assumptions())
    found = []
    for beside, versions in ((False, then), (True, now)):
        for name, placement in versions.items():
            markers = named(placement)(last)
            right = [node for node, _ in markers] == [last.head]
            text = f"{len(markers)} marker{'s' * (len(markers) != 1)} {name}"
            found.append(Reading(name=text, value=float(right), basis="modelled", beside=beside))
    return Finding(tuple(found))


def _saving(case: article.Case, beside: bool) -> Reading:
    plain = dataclasses.replace(_case("no cache"), tool_tokens=case.tool_tokens)
    value = 100 * (1 - article.cost(case, _prices()) / article.cost(plain, _prices()))
    usual = case.tool_tokens == article.TOOL_TOKENS
    name = case.meaning + ("" if usual else f", tools of {case.tool_tokens:,} tokens")
    return Reading(name=name, value=value, basis="modelled", beside=beside)


def _multiples(kind: Kind, of: Kind, date: datetime.date, models: Sequence[str]) -> dict[float, list[str]]:
    """Models by the ratio of two of their prices on a date."""
    found: dict[float, list[str]] = {}
    for model in models:
        rates = _rates(_prices(), model, date)
        found.setdefault(getattr(rates, kind) / getattr(rates, of), []).append(model)
    return found


def _models(models: Sequence[str]) -> str:
    return ", ".join(models) if len(models) < 4 else f"{len(models)} models"


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
