"""A load generator: sends sessions when they are due, limits the requests in flight, and times every answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from kvbench.config.errors import UserError
from kvbench.vllm.answers import Answer
from kvbench.vllm.arrivals import Session, SessionTurn
from kvbench.vllm.errors import ServingError


@dataclass(frozen=True)
class Outcome:
    """One turn as the client saw it; times in seconds from the start of the load.

    Attributes:
        session: the session's name.
        turn: its position in the session, from 0.
        due: when it was to be sent: at the session's arrival, or the gap after the previous answer.
        sent: when it was sent; later than `due` if too many requests were in flight.
        first: when the first token arrived; None if the turn failed.
        last: when the last token arrived; None if the turn failed.
        prompt_tokens: as the server counts them.
        cached_tokens: prompt tokens found in the prefix cache, None if the server does not report them.
        output_tokens: as the server counts them.
        error: why there is no complete answer, "" if there is one.
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
        """Whether the complete answer arrived."""
        return not self.error

    @property
    def ttft(self) -> float:
        """Seconds to the first token, from when the turn was due: queueing at the client counts."""
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
    send: Callable[[SessionTurn], Awaitable[Answer]],
    *,
    max_concurrency: int,
    stage: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Outcome]:
    """Sends a load and waits until all of it is answered.

    A turn that fails (`ServingError`) is not repeated, as that would change the load.
    The rest of its session is not sent, and counts as failed.

    Args:
        sessions: the sessions, with their arrivals.
        send: sends one turn and returns its complete, streamed answer; its driver should have no patience.
        max_concurrency: limit of requests in flight; further ones wait, and their waiting counts.
        stage: progress callback, gets `17 of 32 turns`.
        clock: monotonic seconds.

    Returns:
        One outcome per turn, sessions in their order.

    Raises:
        UserError: a limit that is not positive.
    """
    if max_concurrency < 1:
        raise UserError(f"max_concurrency: {max_concurrency} is not allowed, give 1 or more")
    slots = asyncio.Semaphore(max_concurrency)
    total = sum(len(session.turns) for session in sessions)
    done, start = 0, clock()

    def report(turns: int) -> None:
        nonlocal done
        done += turns
        if stage is not None:
            stage(f"{done} of {total} turns")

    async def run_session(session: Session) -> list[Outcome]:
        found: list[Outcome] = []
        due = session.at
        for number, turn in enumerate(session.turns):
            due += turn.gap
            await asyncio.sleep(max(0.0, start + due - clock()))
            async with slots:
                found.append(await send_turn(session.name, number, turn, due))
            report(1)
            if not found[-1].ok:
                rest = range(number + 1, len(session.turns))
                error = "not sent: the turn before it failed"
                found += [Outcome(session.name, n, due, due, error=error) for n in rest]
                report(len(rest))
                break
            due = clock() - start
        return found

    async def send_turn(name: str, number: int, turn: SessionTurn, due: float) -> Outcome:
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
        tasks = [group.create_task(run_session(session)) for session in sessions]
    return [outcome for task in tasks for outcome in task.result()]
