"""What billed calls cost, what caching saved, what was lost and why, and what other settings would have cost.

Only usage is known, so a loss is what a call wrote again or sent uncached although the previous call of its
conversation had just as much in the cache: an upper bound where the prompt itself changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from kvbench.claude.prices import PriceBook
from kvbench.claude.request import TTL_SECONDS, Usage
from kvbench.claude.usage.call import Call

FIVE, HOUR = TTL_SECONDS["5m"], TTL_SECONDS["1h"]

Cause = Literal["compaction", "model switch", "idle gap", "within its lifetime"]
CAUSES: dict[Cause, str] = {
    "idle gap": "the entry expired before the next call: an hour's lifetime or pings may help, see below",
    "model switch": "another model has its own cache",
    "compaction": "the conversation was compacted: its prompt changed",
    "within its lifetime": "the prompt changed, or the provider dropped the entry: the file does not say which",
}


@dataclass(frozen=True)
class Loss:
    """Tokens that a call paid for again.

    Attributes:
        call: the call.
        cause: why.
        gap: seconds since the previous call of the conversation began.
        ttl: lifetime of the previous call's entries, seconds.
        tokens: at most so many.
        cost: nano-dollars beyond reading them.
    """

    call: Call
    cause: Cause
    gap: float
    ttl: int
    tokens: int
    cost: int


@dataclass(frozen=True)
class Pings:
    """Requests that only keep an entry alive: `max_tokens: 0`, sent while a conversation is idle.

    Attributes:
        every: seconds between them.
        limit: seconds after the last call after which no more are sent.
    """

    every: float = 240.0
    limit: float = 3600.0


@dataclass
class PingResult:
    """What pings would have cost and saved, nano-dollars.

    Attributes:
        sent: number of pings.
        cost: of reading the cached prefix so often.
        kept: gaps that they bridge.
        saved: the losses of these gaps.
        sent_after_the_end: those of them after the last call of a conversation.
        cost_after_the_end: their cost.
    """

    sent: int = 0
    cost: int = 0
    kept: int = 0
    saved: int = 0
    sent_after_the_end: int = 0
    cost_after_the_end: int = 0


@dataclass
class ModelSum:
    """Sums over the calls to one model, or over all; nano-dollars.

    Attributes:
        calls: number of calls.
        usage: tokens.
        paid: list price of what was billed, input and output.
        output: the part of it that is output, with Anthropic's own tools.
        plain: the same calls if nothing had been cached.
        recorded_usd: the source's own figure where it has one.
    """

    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    paid: int = 0
    output: int = 0
    plain: int = 0
    recorded_usd: float = 0.0


@dataclass
class Account:
    """What billed calls cost.

    Attributes:
        models: sums by model as recorded.
        agents: sums by "main" and "sub-agents".
        losses: by time.
        all_1h: cost if every write had an hour's lifetime.
        all_5m: cost if every write had five minutes'.
        pings: what pings would have done, by the gaps that were.
        sessionless: calls whose conversation is unknown.
        copies: calls that stand in several files.
    """

    models: dict[str, ModelSum] = field(default_factory=dict)
    agents: dict[str, ModelSum] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    all_1h: int = 0
    all_5m: int = 0
    pings: PingResult = field(default_factory=PingResult)
    sessionless: int = 0
    copies: int = 0

    @property
    def total(self) -> ModelSum:
        """The sum over all models."""
        return _summed(self.models.values())


def account(calls: Sequence[Call], prices: PriceBook, pings: Pings | None = None) -> Account:
    """Adds up calls.

    Args:
        calls: in order of time; copies count only as what a conversation goes on from.
        prices: the price book; every call must have a price.
        pings: which pings to reckon with.
    """
    pings = pings or Pings()
    found = Account()
    sessions: dict[str, list[Call]] = {}
    known: set[tuple[str, str]] = set()
    for call in calls:
        if call.copy:
            found.copies += 1
        else:
            _add(found.models.setdefault(call.model, ModelSum()), call, prices)
            _add(found.agents.setdefault("sub-agents" if call.agent else "main", ModelSum()), call, prices)
        if not call.session:
            found.sessionless += 1
        elif (call.session, call.id) not in known:
            # a copy is what another conversation goes on from
            known.add((call.session, call.id))
            sessions.setdefault(call.session, []).append(call)
    total = found.total.paid
    found.all_1h, found.all_5m = total, total
    for call in calls:
        if not call.copy and not call.session:
            found.all_1h += _moved(call, prices, write_1h=True)
            found.all_5m += _moved(call, prices, write_1h=False)
    for session in sessions.values():
        _follow(session, prices, pings, found)
    found.losses.sort(key=lambda loss: loss.call.t)
    return found


def plain(usage: Usage) -> Usage:
    """The same tokens if nothing was cached."""
    return Usage(uncached=usage.total, output=usage.output)


def _follow(session: Sequence[Call], prices: PriceBook, pings: Pings, found: Account) -> None:
    """Goes through one conversation."""
    before: Call | None = None
    ttl = FIVE
    for call in session:
        if not call.copy:
            loss = _loss(before, call, ttl, prices)
            expired_5m = expired_1h = 0
            if loss is not None:
                found.losses.append(loss)
            if before is not None and before.model == call.model and not call.compacted:
                gap = call.t - before.t
                if loss is not None and loss.cause == "idle gap" and gap <= HOUR:
                    expired_5m = loss.tokens
                if ttl == HOUR and FIVE < gap <= HOUR:
                    expired_1h = min(call.usage.read, _cached(before))
            found.all_1h += _moved(call, prices, write_1h=True, kept=expired_5m)
            found.all_5m += _moved(call, prices, write_1h=False, lost=expired_1h)
            if before is not None:
                _ping(before, call, ttl, loss, prices, pings, found.pings)
        ttl = HOUR if call.usage.write_1h else FIVE if call.usage.write_5m else ttl
        before = call
    if before is not None:
        _ping(before, None, ttl, None, prices, pings, found.pings)


def _loss(before: Call | None, call: Call, ttl: int, prices: PriceBook) -> Loss | None:
    """What a call paid for again, None if nothing."""
    if before is None:
        return None
    lost = min(_cached(before), call.usage.total) - call.usage.read
    if lost <= 0:
        return None
    gap = call.t - before.t
    cause: Cause = (
        "compaction"
        if call.compacted
        else "model switch"
        if before.model != call.model
        else "idle gap"
        if gap > ttl
        else "within its lifetime"
    )
    cost = _input(call, call.usage, prices) - _input(call, _as_read(call.usage, lost), prices)
    return Loss(call, cause, gap, ttl, lost, cost)


def _cached(call: Call) -> int:
    """Tokens in the cache after a call."""
    return call.usage.read + call.usage.write_5m + call.usage.write_1h


def _as_read(usage: Usage, tokens: int) -> Usage:
    """A usage in which so many tokens behind those read are read too: the prompt's order is read, 1h, 5m, uncached."""
    left = tokens
    parts = []
    for part in (usage.write_1h, usage.write_5m, usage.uncached):
        taken = min(part, left)
        left -= taken
        parts.append(part - taken)
    return replace(
        usage, read=usage.read + tokens - left, write_1h=parts[0], write_5m=parts[1], uncached=parts[2]
    )


def _moved(call: Call, prices: PriceBook, *, write_1h: bool, kept: int = 0, lost: int = 0) -> int:
    """Change of a call's cost if all its writes had one lifetime.

    Args:
        call: the call.
        prices: the price book.
        write_1h: an hour's; otherwise five minutes'.
        kept: tokens that it would then read.
        lost: tokens that it would then write instead of reading them.
    """
    usage = _as_read(call.usage, kept) if kept else call.usage
    written = usage.write_5m + usage.write_1h + lost
    moved = replace(
        usage,
        read=usage.read - lost,
        write_5m=0 if write_1h else written,
        write_1h=written if write_1h else 0,
    )
    return _input(call, moved, prices) - _input(call, call.usage, prices)


def _ping(
    before: Call,
    call: Call | None,
    ttl: int,
    loss: Loss | None,
    prices: PriceBook,
    pings: Pings,
    result: PingResult,
) -> None:
    """Adds the pings between two calls, or after the last one of a conversation."""
    cached = _cached(before)
    if ttl != FIVE or not cached or before.copy:
        return
    most = int(pings.limit / pings.every)
    sent = most
    if call is not None:
        sent = min(most, max(0, math.ceil((call.t - before.t) / pings.every) - 1))
    ping = Usage(read=cached)
    cost = sum(
        _input(replace(before, t=before.t + n * pings.every), ping, prices) for n in range(1, sent + 1)
    )
    result.sent += sent
    result.cost += cost
    if call is None:
        result.sent_after_the_end += sent
        result.cost_after_the_end += cost
    elif loss is not None and loss.cause == "idle gap" and call.t - before.t <= sent * pings.every + ttl:
        result.kept += 1
        result.saved += loss.cost


def _input(call: Call, usage: Usage, prices: PriceBook) -> int:
    return prices.cost(call, usage)[0]


def _add(to: ModelSum, call: Call, prices: PriceBook) -> None:
    paid, output = prices.cost(call, call.usage)
    to.calls += 1
    to.usage = _plus(to.usage, call.usage)
    to.paid += paid + output
    to.output += output
    to.plain += sum(prices.cost(call, plain(call.usage)))
    to.recorded_usd += call.recorded_usd or 0.0


def _summed(sums: Iterable[ModelSum]) -> ModelSum:
    total = ModelSum()
    for one in sums:
        total.calls += one.calls
        total.usage = _plus(total.usage, one.usage)
        total.paid += one.paid
        total.output += one.output
        total.plain += one.plain
        total.recorded_usd += one.recorded_usd
    return total


def _plus(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.read + other.read,
        one.write_5m + other.write_5m,
        one.write_1h + other.write_1h,
        one.uncached + other.uncached,
        one.output + other.output,
    )
