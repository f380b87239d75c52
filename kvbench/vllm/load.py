"""A load generator: sends sessions when they are due, never more than a bound at once, and times every answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from kvbench.config.errors import UserError
from kvbench.vllm.arrivals import Session, Turn
from kvbench.vllm.driver import Answer
from kvbench.vllm.errors import ServingError


@dataclass(frozen=True)
class Outcome:
    """One turn as the client saw it; times in seconds from the start of the load.

    Attributes:
        session: the session's name.
        turn: its place in the session, from 0.
        due: when it should have been sent: the arrival, or the gap after the answer before it.
        sent: when it was sent; later than `due` when too many others were under way.
        first: when the first token came; None if the turn failed.
        last: when the last token came; None if the turn failed.
        prompt_tokens: as the server counted them.
        cached_tokens: of them found in the prefix cache, None where the server does not say.
        output_tokens: as the server counted them.
        error: why there is no whole answer, "" if there is one.
    """

    session: str
    turn: int
    due: float
    sent: float
    first: float | None = None
    last: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the whole answer came."""
        return not self.error

    @property
    def ttft(self) -> float:
        """Seconds to the first token, from when the turn was due: waiting for a free place counts."""
        assert self.first is not None
        return self.first - self.due

    @property
    def latency(self) -> float:
        """Seconds to the last token, from when the turn was due."""
        assert self.last is not None
        return self.last - self.due

    @property
    def per_token(self) -> float | None:
        """Seconds per token after the first, None for an answer of one token."""
        assert self.first is not None and self.last is not None
        return (self.last - self.first) / (self.output_tokens - 1) if self.output_tokens > 1 else None


async def run(
    sessions: Sequence[Session],
    send: Callable[[Turn], Awaitable[Answer]],
    *,
    most: int,
    stage: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Outcome]:
    """Sends a load and waits for all of it.

    A turn that fails (`ServingError`) is not repeated: that would be another load.
    The rest of its session is not sent, and counts as failed.

    Args:
        sessions: what to send, each with its arrival.
        send: sends one turn and returns when its streamed answer is whole; its driver should have no patience.
        most: requests under way at once; the others wait, and their waiting counts.
        stage: is told how many turns are done, as `17 of 32 turns`.
        clock: monotonic seconds.

    Returns:
        One outcome per turn, sessions in their order.

    Raises:
        UserError: a bound that is not positive.
    """
    if most < 1:
        raise UserError(f"most: {most} is not allowed, give a positive whole number of requests")
    room = asyncio.Semaphore(most)
    total = sum(len(session.turns) for session in sessions)
    done, start = 0, clock()

    def told(turns: int) -> None:
        nonlocal done
        done += turns
        if stage is not None:
            stage(f"{done} of {total} turns")

    async def one(session: Session) -> list[Outcome]:
        found: list[Outcome] = []
        due = session.at
        for number, turn in enumerate(session.turns):
            due += turn.gap
            await asyncio.sleep(max(0.0, start + due - clock()))
            async with room:
                found.append(await _sent(session.name, number, turn, due))
            told(1)
            if not found[-1].ok:
                rest = range(number + 1, len(session.turns))
                error = "not sent: the turn before it failed"
                found += [Outcome(session.name, n, due, due, error=error) for n in rest]
                told(len(rest))
                break
            due = clock() - start
        return found

    async def _sent(name: str, number: int, turn: Turn, due: float) -> Outcome:
        sent = clock() - start
        try:
            answer = await send(turn)
        except ServingError as error:
            return Outcome(name, number, due, sent, error=f"{type(error).__name__}: {error}")
        assert answer.first_token is not None and answer.last_token is not None, "not streamed"
        accepted = sent + answer.waited
        return Outcome(
            name,
            number,
            due,
            sent,
            accepted + answer.first_token,
            accepted + answer.last_token,
            answer.prompt_tokens,
            answer.cached_tokens,
            answer.output_tokens,
        )

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(session)) for session in sessions]
    return [outcome for task in tasks for outcome in task.result()]
