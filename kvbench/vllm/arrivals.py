"""What a load generator sends, and when: sessions of turns, with Poisson arrivals."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kvbench.config.errors import UserError


@dataclass(frozen=True)
class SessionTurn:
    """One request of a session.

    Attributes:
        prompt: token ids, [T].
        max_tokens: number of tokens to generate.
        gap: seconds between the end of the previous turn and this one; for the first turn, after the session's
            arrival.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    gap: float = 0.0


@dataclass(frozen=True)
class Session:
    """Turns sent one after another: each waits for the answer to the previous one.

    Attributes:
        name: unique in its load.
        turns: in order.
        at: seconds from the start of the load to the session's arrival.
    """

    name: str
    turns: tuple[SessionTurn, ...]
    at: float = 0.0


def poisson(sessions: Iterable[Session], rate: float | None, seed: int = 0) -> list[Session]:
    """The sessions with arrivals of a Poisson process, in their order.

    Args:
        sessions: the sessions.
        rate: sessions per second; None = all at once, at 0.
        seed: of the times between arrivals.

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
        # the first arrival is drawn too: one fixed at 0 would not belong to the process
        now += draw.expovariate(rate) if rate else 0.0
        arrived.append(replace(session, at=now))
    return arrived


def of_prompts(prompts: Iterable[tuple[str, Sequence[int], int]], gap: float = 0.0) -> list[Session]:
    """Sessions of fixed prompts: earlier answers are part of them, so they do not depend on the server.

    Args:
        prompts: (session, token ids, tokens to generate); prompts of one session are its turns, in their order.
        gap: seconds between an answer and the next turn.
    """
    grouped: dict[str, list[SessionTurn]] = {}
    for name, ids, tokens in prompts:
        turns = grouped.setdefault(name, [])
        turns.append(SessionTurn(tuple(ids), tokens, gap if turns else 0.0))
    return [Session(name, tuple(turns)) for name, turns in grouped.items()]
