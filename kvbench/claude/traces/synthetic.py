"""Generated conversations with given turns, gaps, context size and fan-out; contents are only hashes."""

from __future__ import annotations

import datetime
import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import (
    MESSAGES,
    SYSTEM,
    TEXT,
    TOOL,
    TOOL_RESULT,
    TOOL_USE,
    TOOLS,
    ContentBlock,
    Hashing,
    Node,
    Request,
    append,
    root,
)
from kvbench.claude.simulate import Trace
from kvbench.config.errors import UserError

_HASHING, _SALTS = Hashing(), (0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Sessions with common tools and system prompt; every turn appends tool calls with results, a question, an answer.

    Attributes:
        sessions: number of conversations.
        turns: turns per conversation.
        gap: seconds between the turns of a session; with `jitter` the mean of an exponential distribution.
        jitter: draw random gaps.
        stagger: seconds between the starts of two sessions.
        tools: tokens of the tool definitions.
        system: tokens of the system prompt.
        context: tokens retrieved per turn.
        question: tokens of a user's question.
        answer: output tokens, part of the next prompt.
        tool_calls: parallel tool calls per turn, each with a result (one run of blocks).
        fan_out: simultaneous requests per turn with the same prefix.
        ttft: seconds to the first byte.
        shared: all sessions use one workspace.
        seed: seed of the gaps.
    """

    sessions: int = 1
    turns: int = 10
    gap: float = 60.0
    jitter: bool = False
    stagger: float = 30.0
    tools: int = 1_500
    system: int = 2_000
    context: int = 3_000
    question: int = 100
    answer: int = 400
    tool_calls: int = 1
    fan_out: int = 1
    ttft: float = 2.0
    shared: bool = True
    seed: int = 0


class SyntheticTrace(Trace):
    """The sessions of a `Synthetic`, merged by start time of the requests."""

    def __init__(
        self,
        spec: Synthetic,
        prices: PriceBook,
        model: str = "claude-sonnet-4-6",
        date: datetime.date = datetime.date(2026, 11, 24),
    ) -> None:
        """Validates the numbers.

        Args:
            spec: shape of the sessions.
            prices: defines the known models.
            model: model id.
            date: day of the first request.

        Raises:
            UserError: unknown model, or a number that is not allowed.
        """
        for name in ("sessions", "turns", "fan_out", "question"):
            if getattr(spec, name) < 1:
                raise UserError(f"synthetic.{name}={getattr(spec, name)}: allowed are 1 and more")
        for name in ("gap", "stagger", "tools", "system", "context", "answer", "tool_calls", "ttft"):
            if getattr(spec, name) < 0:
                raise UserError(f"synthetic.{name}={getattr(spec, name)}: allowed are 0 and more")
        prices.resolve(model)
        self.spec = spec
        self._model = model
        self._first = datetime.datetime.combine(date, datetime.time(), datetime.UTC).timestamp()

    def requests(self, assumptions: Assumptions) -> Iterator[Request]:
        """See Trace; generated hashes do not depend on the assumptions."""
        waiting: list[tuple[float, int, Request, Iterator[Request]]] = []
        opened = 0
        while waiting or opened < self.spec.sessions:
            # sessions are created at their start time, so that only active ones are in memory
            while opened < self.spec.sessions and (not waiting or self._start(opened) <= waiting[0][0]):
                _push(waiting, opened, self._session(opened))
                opened += 1
            _, number, request, session = heapq.heappop(waiting)
            yield request
            _push(waiting, number, session)

    def _start(self, number: int) -> float:
        return self._first + number * self.spec.stagger

    def _session(self, number: int) -> Iterator[Request]:
        spec = self.spec
        draw = random.Random(f"{spec.seed}/{number}")
        t = self._start(number)
        node, tools_end, system_end = _stable(spec)
        for turn in range(spec.turns):
            head = self._turn(node, number, turn)
            for copy in range(spec.fan_out):
                yield Request(
                    id=f"s{number}/{turn}/{copy}",
                    t=t,
                    model=self._model,
                    head=_question(head, spec, number, turn, copy) if spec.fan_out > 1 else head,
                    tools_end=tools_end,
                    system_end=system_end,
                    session=f"s{number}",
                    workspace="default" if spec.shared else f"s{number}",
                    ttft=spec.ttft,
                    output=spec.answer,
                    source="usage",
                )
            node = _block(head, TEXT, spec.answer, (number, turn, 3), 2 * turn + 1)
            t += draw.expovariate(1 / spec.gap) if spec.jitter and spec.gap else spec.gap

    def _turn(self, node: Node, number: int, turn: int) -> Node:
        """Tool calls, results with the retrieved context, and the question of one turn."""
        spec = self.spec
        for call in range(spec.tool_calls):
            node = _block(node, TOOL_USE, 30, (number, turn, 4, call), 2 * turn - 1)
        for call in range(spec.tool_calls):
            node = _block(
                node, TOOL_RESULT, spec.context // spec.tool_calls, (number, turn, 5, call), 2 * turn
            )
        if not spec.tool_calls and spec.context:
            node = _block(node, TEXT, spec.context, (number, turn, 6), 2 * turn)
        return _block(node, TEXT, spec.question, (number, turn, 7), 2 * turn)


def _push(
    waiting: list[tuple[float, int, Request, Iterator[Request]]], number: int, session: Iterator[Request]
) -> None:
    request = next(session, None)
    if request is not None:
        heapq.heappush(waiting, (request.t, number, request, session))


def _stable(spec: Synthetic) -> tuple[Node, Node | None, Node | None]:
    node = root()
    tools_end = system_end = None
    if spec.tools:
        node = tools_end = append(node, ContentBlock(TOOLS, TOOL, 1, spec.tools), _HASHING, _SALTS)
    if spec.system:
        node = system_end = append(node, ContentBlock(SYSTEM, TEXT, 2, spec.system), _HASHING, _SALTS)
    return node, tools_end, system_end


def _question(head: Node, spec: Synthetic, number: int, turn: int, copy: int) -> Node:
    return _block(head, TEXT, spec.question, (number, turn, 8, copy), head.message)


def _block(node: Node, kind: int, tokens: int, name: tuple[int, ...], message: int) -> Node:
    block = ContentBlock(MESSAGES, kind, hash(name) & 0xFFFFFFFFFFFFFFFF, tokens, message=message)
    return append(node, block, _HASHING, _SALTS)
