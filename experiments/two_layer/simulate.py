"""A device that serves sessions, event by event: how many sequences share a decode step follows from the load.

Sessions begin at random (a Poisson process). A request is sent at its recorded time, or when the one before it has been
answered if that is later. The device prefills and compresses one request at a time, in order of arrival, as long as
there is room for one more. After each prefill all sequences take a decode step together, which gives the new one its
first token; they go on decoding when nobody waits or nothing fits.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvbench.experiments.two_layer.breakeven import DAY
from kvbench.experiments.two_layer.sessions import HostedRequest, PrefixPool, Session

COUNTED = 100  # sessions that are measured per draw
WARM = 10  # sessions before and after them, besides those that last as long
TAIL = 0.95  # quantile of the time to the first token
NEAR = 1.01  # capacities are found within this factor


class Timing(Protocol):
    """Device time of requests; own seconds of a step are those of a sequence's cache: by bytes, and by operations."""

    def before(self, request: HostedRequest, reused: int) -> float:
        """Seconds of prefill and compression, if `reused` prompt tokens need no prefill."""
        ...

    def own(self, request: HostedRequest) -> tuple[float, float]:
        """Seconds that the sequence's cache adds to a decode step."""
        ...

    def step(self, batch: int, by_bytes: float, by_flops: float) -> float:
        """Seconds of a decode step of `batch` sequences with these sums of own seconds."""
        ...


@dataclass(frozen=True)
class Memory:
    """Where caches go beside the weights.

    Attributes:
        room: bytes for all caches.
        batch: the most sequences decoded together.
        token: bytes of a token in the prefix cache, 0 without one.
        copies: whether sequences are decoded from copies, which take their room from the prefix cache; otherwise from
            the prefix cache itself.
        fresh: tokens at the end of a prompt that are computed even if they are cached.
    """

    room: float
    batch: int
    token: float = 0.0
    copies: bool = False
    fresh: int = 1

    def pool(self, decoding: float) -> float:
        """Tokens that the prefix cache may hold while sequences with `decoding` bytes are on the device."""
        return (self.room - (decoding if self.copies else 0.0)) / self.token if self.token else 0.0


class Sizes(Protocol):
    """Bytes of a request's cache."""

    def while_decoding(self, request: HostedRequest) -> float:
        """Bytes at the end of decoding."""
        ...

    def while_prefilled(self, request: HostedRequest) -> float:
        """Bytes during prefill and compression, or at the end of decoding if that is more."""
        ...


@dataclass(frozen=True)
class Server:
    """A way to serve on one device."""

    timing: Timing
    sizes: Sizes
    memory: Memory


@dataclass(frozen=True)
class Load:
    """What a load does to a device; mean over sessions.

    Attributes:
        seconds: device time per session; a decode step is shared equally by its sequences.
        prefill: share of prefill and compression in it.
        reused: share of the prompt tokens found in the prefix cache.
        batch: sequences per decode step.
        first_token: seconds from sending a request to its first token, exceeded by one request in twenty.
    """

    seconds: float
    prefill: float
    reused: float
    batch: float
    first_token: float


def alone(recorded: Sequence[Session], server: Server) -> Load:
    """A session with the device to itself: batch 1, nobody waits."""
    before: list[float] = []
    steps: list[float] = []
    waits: list[float] = []
    found = 0
    for number, session in enumerate(recorded):
        pool = PrefixPool(server.memory.fresh)
        for request in session:
            room = server.memory.pool(server.sizes.while_decoding(request))
            reused = pool.serve(number, request, room)
            step = server.timing.step(1, *server.timing.own(request))
            before.append(server.timing.before(request, reused))
            steps.append(request.output * step)
            waits.append(before[-1] + step)
            found += reused
    total = math.fsum(before + steps)
    prompts = sum(request.prompt for session in recorded for request in session)
    return Load(total / len(recorded), math.fsum(before) / total, found / prompts, 1.0, _tail(waits))


def loaded(recorded: Sequence[Session], server: Server, per_day: float, seed: int) -> Load:
    """One draw of the load.

    Sessions before and after the counted ones are served, uncounted, so that all counted ones see the same load.

    Args:
        recorded: the sessions, which begin in turn.
        server: the device.
        per_day: sessions per day, on average.
        seed: of the times at which they begin.
    """
    return _Run(recorded, server, per_day, random.Random(seed)).load()


def capacity(recorded: Sequence[Session], server: Server, utilisation: float, draws: int) -> int:
    """The highest number of sessions per day that keeps a device busy for at most this share, within `NEAR`.

    Device time per session depends on the load: decode steps are shared by more sequences, and sessions evict each
    other from the prefix cache. Found by bisection between a device that shares and reuses nothing and one that pays
    only the share of a full batch, on the same draws at every load.
    """
    busy_s = DAY * utilisation

    def fits(per_day: int) -> bool:
        # draws are added until the rest cannot change the answer
        spent, budget = 0.0, draws * busy_s / per_day
        for seed in range(draws):
            spent += loaded(recorded, server, per_day, seed).seconds
            if spent > budget:
                return False
        return True

    low, high = 1, int(busy_s / _least(recorded, server)) + 1
    if high == 1 or not fits(low):
        return 0
    while high > max(low + 1, NEAR * low):
        middle = max(low + 1, int(math.sqrt(low * high)))
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _least(recorded: Sequence[Session], server: Server) -> float:
    """Device seconds per session that no load undercuts: everything reused, every step shared by a full batch."""
    spent = []
    for number, session in enumerate(recorded):
        pool, room = PrefixPool(server.memory.fresh), math.inf if server.memory.token else 0.0
        for request in session:
            by_bytes, by_flops = server.timing.own(request)
            batch = server.memory.batch
            step = server.timing.step(batch, batch * by_bytes, batch * by_flops) / batch
            reused = pool.serve(number, request, room)
            spent.append(server.timing.before(request, reused) + request.output * step)
    return math.fsum(spent) / len(recorded)


@dataclass(order=True)
class _Sequence:
    """A request on the device; ordered by the step after which it is done."""

    last_step: int
    order: int
    session: int = field(compare=False)
    turn: int = field(compare=False)
    sent: float = field(compare=False)
    own: tuple[float, float] = field(compare=False)
    bytes: float = field(compare=False)
    before: float = field(compare=False)
    share: float = field(compare=False)
    part: float = field(compare=False)


class _Run:
    """One draw."""

    def __init__(
        self, recorded: Sequence[Session], server: Server, per_day: float, source: random.Random
    ) -> None:
        self._recorded, self._server = recorded, server
        interval = DAY / per_day
        margin = WARM + math.ceil(max(session[-1].t for session in recorded) / interval)
        self._counted = range(margin, margin + max(COUNTED, len(recorded)))
        self._begins: list[float] = []
        now = 0.0
        for _ in range(2 * margin + len(self._counted)):
            now += source.expovariate(1.0) * interval
            self._begins.append(now)
        # time sent, session, turn
        self._coming = [(begin, number, 0) for number, begin in enumerate(self._begins)]
        self._waiting: deque[tuple[float, int, int]] = deque()
        self._running: list[_Sequence] = []
        self._started: list[_Sequence] = []
        self._pool = PrefixPool(server.memory.fresh)
        self._now = 0.0
        self._steps = self._order = 0
        # seconds of decode steps, and their number, each divided by its number of sequences
        self._share = self._part = 0.0

    def load(self) -> Load:
        spent: list[float] = []
        before: list[float] = []
        waits: list[float] = []
        found = total = slots = 0
        steps = 0.0
        left = sum(len(self._session(number)) for number in self._counted)
        while left:
            while self._coming and self._coming[0][0] <= self._now:
                self._waiting.append(heapq.heappop(self._coming))
            if not self._started and self._next_fits():
                sent, number, turn = self._waiting.popleft()
                reused = self._begin(sent, number, turn)
                if number in self._counted:
                    found += reused
                    total += self._session(number)[turn].prompt
            elif self._running:
                first = self._decode()
                waits += [first - one.sent for one in self._started if one.session in self._counted]
                self._started.clear()
                for one in self._finished():
                    if one.session in self._counted:
                        left -= 1
                        before.append(one.before)
                        spent.append(one.before + self._share - one.share)
                        slots += self._session(one.session)[one.turn].output
                        steps += self._part - one.part
            else:
                self._now = self._coming[0][0]
        seconds = math.fsum(spent)
        return Load(
            seconds / len(self._counted),
            math.fsum(before) / seconds,
            found / total,
            slots / steps,
            _tail(waits),
        )

    def _session(self, number: int) -> Session:
        return self._recorded[number % len(self._recorded)]

    def _next_fits(self) -> bool:
        """Whether somebody waits and there is room; an empty device takes any request."""
        if not self._waiting or not self._running:
            return bool(self._waiting)
        if len(self._running) >= self._server.memory.batch:
            return False
        _, number, turn = self._waiting[0]
        need = self._server.sizes.while_prefilled(self._session(number)[turn])
        return self._decoding() + need <= self._server.memory.room

    def _decoding(self) -> float:
        """Bytes of the sequences on the device."""
        return math.fsum(one.bytes for one in self._running)

    def _begin(self, sent: float, number: int, turn: int) -> int:
        """Prefills and compresses a request; returns the number of reused tokens."""
        request = self._session(number)[turn]
        size = self._server.sizes.while_decoding(request)
        reused = self._pool.serve(number, request, self._server.memory.pool(self._decoding() + size))
        before = self._server.timing.before(request, reused)
        self._now += before
        self._order += 1
        one = _Sequence(
            self._steps + request.output, self._order, number, turn, sent, self._server.timing.own(request),
            size, before, self._share, self._part,
        )  # fmt: skip
        heapq.heappush(self._running, one)
        self._started.append(one)
        return reused

    def _decode(self) -> float:
        """Steps until a sequence is done or a request can be taken; returns the end of the first one."""
        batch = len(self._running)
        by_bytes, by_flops = (math.fsum(one.own[part] for one in self._running) for part in (0, 1))
        step = self._server.timing.step(batch, by_bytes, by_flops)
        count = self._running[0].last_step - self._steps
        if self._next_fits():
            count = 1
        elif self._coming and not self._waiting:
            count = min(count, max(1, math.ceil((self._coming[0][0] - self._now) / step)))
        first = self._now + step
        self._now += count * step
        self._steps += count
        self._share += count * step / batch
        self._part += count / batch
        return first

    def _finished(self) -> list[_Sequence]:
        """Takes the sequences that are done off the device; the next requests of their sessions are sent."""
        done = []
        while self._running and self._running[0].last_step <= self._steps:
            one = heapq.heappop(self._running)
            done.append(one)
            session = self._session(one.session)
            if one.turn + 1 < len(session):
                recorded = self._begins[one.session] + session[one.turn + 1].t
                heapq.heappush(self._coming, (max(recorded, self._now), one.session, one.turn + 1))
        return done


def _tail(waits: list[float]) -> float:
    """The quantile `TAIL`: the smallest value that at most one in twenty exceeds."""
    return sorted(waits)[math.ceil(TAIL * len(waits)) - 1]
