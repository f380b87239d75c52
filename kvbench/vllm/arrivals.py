"""What a load generator sends and when: sessions of turns, drawn or taken from a recorded trace."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvbench.config.errors import UserError

if TYPE_CHECKING:
    from kvbench.claude.request import Request


@dataclass(frozen=True)
class Turn:
    """One request.

    Attributes:
        prompt: token ids, [T].
        max_tokens: tokens to generate, all of them.
        gap: seconds between the end of the turn before it and this one; of a first turn, after the session's
            arrival.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    gap: float = 0.0


@dataclass(frozen=True)
class Session:
    """Turns that follow each other: none is sent before the one before it has been answered.

    Attributes:
        name: unique in its load.
        turns: in order.
        at: seconds from the start of the load to the session's arrival.
    """

    name: str
    turns: tuple[Turn, ...]
    at: float = 0.0


def poisson(sessions: Iterable[Session], rate: float | None, seed: int = 0) -> list[Session]:
    """The sessions with arrivals of a Poisson process, in their order.

    Args:
        sessions: what arrives.
        rate: sessions per second; None = all at once, at 0.
        seed: of the gaps.

    Raises:
        UserError: a rate that is not positive.
    """
    if rate is not None and rate <= 0:
        raise UserError(
            f"rate: {rate} is not allowed, give sessions per second above 0, or null for all at once"
        )
    draw = random.Random(f"arrivals/{seed}")
    arrived, now = [], 0.0
    for session in sessions:
        # the first gap is drawn too: an arrival at 0 would not belong to the process
        now += draw.expovariate(rate) if rate else 0.0
        arrived.append(replace(session, at=now))
    return arrived


def of_trace(
    requests: Iterable[Request],
    vocabulary: Sequence[int],
    *,
    shrink: int = 1,
    speed: float = 1.0,
    most_tokens: int,
    most_output: int,
) -> list[Session]:
    """Sessions of a trace, whose blocks have hashes and token counts but no text.

    Every block becomes random tokens that depend on its hash only, so that two prompts share exactly the blocks
    that they shared when they were recorded. Such prompts measure caching, batching and latency; answers to
    them mean nothing.

    Args:
        requests: of `kvbench.claude.traces`, by start.
        vocabulary: token ids to draw from, without special ones.
        shrink: every block gets 1/shrink of its tokens, at least one.
        speed: the trace's clock runs so many times faster.
        most_tokens: prompts beyond it end the session, as a server with so much context would end it.
        most_output: the longest answer asked for.

    Raises:
        UserError: a number that makes no sense, or no request fits.
    """
    for name, value in (("shrink", shrink), ("speed", speed)):
        if value <= 0:
            raise UserError(f"{name}: {value} is not allowed, give a number above 0")
    grouped: dict[str, list[tuple[Request, Turn]]] = {}
    ended: set[str] = set()
    start: float | None = None
    for request in requests:
        start = request.t if start is None else start
        prompt = _tokens(request, vocabulary, shrink)
        output = max(1, min(most_output, request.output // shrink))
        if request.session in ended or len(prompt) + output > most_tokens:
            ended.add(request.session)
            continue
        grouped.setdefault(request.session, []).append((request, Turn(prompt, output)))
    if not grouped:
        raise UserError(f"trace: no prompt of it fits {most_tokens} tokens; give a larger shrink")
    assert start is not None
    return [_session(name, pairs, start, speed) for name, pairs in grouped.items()]


def _session(name: str, pairs: Sequence[tuple[Request, Turn]], start: float, speed: float) -> Session:
    turns, before = [], None
    for request, turn in pairs:
        # what a recorded request took is not known after its first byte: gaps are from there on
        idle = 0.0 if before is None else max(0.0, request.t - before.t - before.ttft)
        turns.append(replace(turn, gap=idle / speed))
        before = request
    return Session(name or "trace", tuple(turns), at=(pairs[0][0].t - start) / speed)


def _tokens(request: Request, vocabulary: Sequence[int], shrink: int) -> tuple[int, ...]:
    ids: list[int] = []
    node = request.head
    chain = []
    while node is not None and node.index:
        chain.append(node)
        node = node.parent
    for link in reversed(chain):
        before = link.parent.tokens if link.parent is not None else 0
        count = max(1, (link.tokens - before) // shrink)
        # `own` alone would do for equal blocks, but a block's place is part of what is cached
        ids += random.Random(link.cum).choices(vocabulary, k=count)
    return tuple(ids)


def of_prompts(prompts: Iterable[tuple[str, Sequence[int], int]], gap: float = 0.0) -> list[Session]:
    """Sessions of prompts whose answers do not depend on the server: earlier answers in them are given.

    Args:
        prompts: (session, token ids, tokens to generate); prompts of one session are its turns, in their order.
        gap: seconds between an answer and the next turn.
    """
    grouped: dict[str, list[Turn]] = {}
    for name, ids, tokens in prompts:
        turns = grouped.setdefault(name, [])
        turns.append(Turn(tuple(ids), tokens, gap if turns else 0.0))
    return [Session(name, tuple(turns)) for name, turns in grouped.items()]
