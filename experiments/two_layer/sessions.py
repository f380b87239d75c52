"""Recorded sessions: their requests, the reuse by a prefix cache, and their load on a device."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.request import Request
from kvbench.claude.simulate import Trace
from kvbench.config.errors import UserError
from kvbench.experiments.two_layer.breakeven import DAY

PAGE = 16  # tokens per page of the prefix cache (vLLM's default block size)


@dataclass(frozen=True)
class HostedRequest:
    """A request to a self-hosted model.

    Attributes:
        t: seconds since the start of its session.
        path: (name, tokens) of every block of the prompt, in order; the name identifies the prefix up to the block.
        output: tokens of the answer.
    """

    t: float
    path: tuple[tuple[int, int], ...]
    output: int

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return sum(tokens for _, tokens in self.path)


Session = tuple[HostedRequest, ...]

Cost = Callable[[HostedRequest, int], tuple[float, float]]
"""Maps a request and its number of reused prompt tokens to device seconds: prefill, and the rest."""


class IsolatedSessions(Trace):
    """A trace whose sessions share no cache: each gets a separate workspace."""

    def __init__(self, trace: Trace) -> None:
        """Wraps a trace."""
        self._trace = trace

    def requests(self, assumptions: Assumptions) -> Iterator[Request]:
        """See Trace."""
        for request in self._trace.requests(assumptions):
            yield replace(request, workspace=f"{request.workspace}/{request.session}")


def sessions(requests: Iterable[Request]) -> list[Session]:
    """The sessions of a trace, without the tokens that the API itself adds to a prompt (R21).

    Raises:
        UserError: no request, or one without an answer.
    """
    grouped: dict[str, list[Request]] = {}
    for request in requests:
        if request.output < 1:
            raise UserError(f"request {request.id}: no output tokens, nothing to decode")
        grouped.setdefault(request.session, []).append(request)
    if not grouped:
        raise UserError("trace: it contains no requests")
    return [
        tuple(HostedRequest(request.t - group[0].t, _path(request), request.output) for request in group)
        for group in grouped.values()
    ]


def _path(request: Request) -> tuple[tuple[int, int], ...]:
    path: list[tuple[int, int]] = []
    node = request.head
    while node.parent is not None:
        path.append((node.cum, node.tokens - node.parent.tokens))
        node = node.parent
    return tuple(reversed(path))


class PrefixPool:
    """A prefix cache of limited size with LRU eviction; the end of a prompt is evicted before its beginning."""

    def __init__(self, tokens: float) -> None:
        """An empty pool for `tokens` tokens."""
        self._room = tokens
        self._used = 0
        self._held: OrderedDict[tuple[int, int], int] = OrderedDict()

    def serve(self, session: int, request: HostedRequest) -> int:
        """Looks up a prompt and stores it.

        Args:
            session: number of the session; sessions share no prefix.
            request: the request.

        Returns:
            Number of tokens found: whole pages, and never the whole prompt, whose last token must be computed.
        """
        found, whole = 0, True
        for name, tokens in request.path:
            whole = whole and (session, name) in self._held
            found += tokens if whole else 0
        # the beginning is moved to the end of the queue last, so that it is evicted last
        for name, tokens in reversed(request.path):
            key = (session, name)
            if key not in self._held:
                self._held[key] = tokens
                self._used += tokens
            self._held.move_to_end(key)
        while self._used > self._room:
            self._used -= self._held.popitem(last=False)[1]
        found = min(found, request.prompt - 1)
        return found - found % PAGE


@dataclass(frozen=True)
class Load:
    """Device load per session, mean over sessions.

    Attributes:
        seconds: device time.
        prefill: share of prefill in the device time.
        reused: share of the prompt tokens found in the prefix cache.
    """

    seconds: float
    prefill: float
    reused: float


def unloaded(recorded: Sequence[Session], cost: Cost, pool: float) -> Load:
    """Load of a session with exclusive use of the prefix cache; `pool=0` means no prefix cache."""
    return _measure([(number, session) for number, session in enumerate(recorded)], 0, cost, pool, math.inf)


def loaded(recorded: Sequence[Session], cost: Cost, pool: float, per_day: float) -> Load:
    """Load of a session among others that start evenly over the day and share the prefix cache.

    Sessions are replayed cyclically; those that start while the first one is still running fill the pool, uncounted.

    Args:
        recorded: the sessions.
        cost: device seconds of a request.
        pool: capacity of the prefix cache in tokens.
        per_day: sessions per day and device.
    """
    interval = DAY / per_day
    open_at_once = math.ceil(max(session[-1].t for session in recorded) / interval)
    count = 2 * open_at_once + len(recorded)
    started = [(number, recorded[number % len(recorded)]) for number in range(count)]
    # as many sessions follow the counted ones as precede them, so that the last ones see the same load
    return _measure(started, open_at_once, cost, pool, interval)


def _measure(
    started: Sequence[tuple[int, Session]], warm: int, cost: Cost, pool: float, interval: float
) -> Load:
    prefixes = PrefixPool(pool)
    counted = range(warm, len(started) - warm)
    prefills: list[float] = []
    rests: list[float] = []
    found = total = 0
    for _, number, request in _merged(started, interval):
        reused = prefixes.serve(number, request)
        if number in counted:
            prefill_s, rest_s = cost(request, reused)
            prefills.append(prefill_s)
            rests.append(rest_s)
            found += reused
            total += request.prompt
    # correctly rounded sums do not depend on the order of the requests
    seconds, prefill = math.fsum(prefills + rests), math.fsum(prefills)
    return Load(seconds / len(counted), prefill / seconds, found / total)


def _merged(
    started: Sequence[tuple[int, Session]], interval: float
) -> Iterator[tuple[float, int, HostedRequest]]:
    """All requests ordered by start time; with an infinite interval, one session after another."""
    if math.isinf(interval):
        return iter([(request.t, number, request) for number, session in started for request in session])
    streams = [
        [(number * interval + request.t, number, request) for request in session]
        for number, session in started
    ]
    return heapq.merge(*streams, key=lambda item: item[:2])


def capacity(recorded: Sequence[Session], cost: Cost, pool: float, busy_s: float) -> int:
    """Maximum of sessions per day that one device serves in `busy_s` seconds of work per day.

    Without a prefix cache, device time per session does not depend on the load. With one, sessions evict each other, so
    the capacity is found by bisection between no reuse and full reuse.
    """
    low, high = (int(busy_s / unloaded(recorded, cost, room).seconds) for room in (0, pool))
    while low < high:
        middle = (low + high + 1) // 2
        if middle * loaded(recorded, cost, pool, middle).seconds <= busy_s:
            low = middle
        else:
            high = middle - 1
    return low
