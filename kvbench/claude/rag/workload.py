"""Runs the Agentic-RAG workload against the loopback server, or against the real API if configured."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import BaseTool

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import Placement
from kvbench.claude.prices import PriceBook
from kvbench.claude.rag import prompts
from kvbench.claude.rag.claude import Agent, ContextInSystem
from kvbench.claude.rag.corpus import questions
from kvbench.claude.rag.graphs import AppendOnly, Conversation, Separate, search_tool
from kvbench.claude.rag.placer import Placer
from kvbench.claude.rag.salt import Salter
from kvbench.claude.rag.sizes import Sizes
from kvbench.claude.recording.recorder import Recorder
from kvbench.claude.request import Request, Usage
from kvbench.claude.server import Engine, LoopbackServer
from kvbench.claude.tokens import CharCounter, Counter
from kvbench.claude.traces.recorded import RecordedTrace
from kvbench.config.errors import UserError

LAYOUTS = ("article_graph", "article_explicit", "corrected", "append_only", "agent", "agent_5m", "agent_1h")
KEY = "ANTHROPIC_API_KEY"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Questions, timing and prompt sizes of the workload.

    Attributes:
        model: model id.
        turns: questions per conversation.
        conversations: number of sequential conversations.
        gap: seconds between the end of a turn and the next question.
        service: seconds per request (virtual time; ignored by live runs).
        start: time of the first request, seconds since the epoch (virtual time).
        sizes: sizes of the prompt's parts.
        seed: seed of the questions.
    """

    model: str = "claude-sonnet-4-6"
    turns: int = 10
    conversations: int = 1
    gap: float = 60.0
    service: float = 2.0
    start: float = 1_795_478_400.0
    sizes: Sizes = field(default_factory=Sizes)
    seed: int = 0


class VirtualClock:
    """A clock that the workload advances."""

    def __init__(self, start: float) -> None:
        """Starts at `start`, in seconds since the epoch."""
        self.now = start

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return self.now


@dataclass
class WorkloadRun:
    """One run of the workload.

    Attributes:
        layout: name of the layout.
        requests: recorded requests with blocks, markers and reported usage.
        bodies: JSON of every request received by the loopback server (empty in live runs).
        answers: one per turn.
    """

    layout: str
    requests: list[Request]
    bodies: list[Mapping[str, Any]]
    answers: list[str]

    @property
    def usages(self) -> list[Usage]:
        """Reported usage of each request."""
        return [request.usage for request in self.requests if request.usage is not None]

    def marked(self) -> int:
        """Number of requests with cache_control."""
        return sum("cache_control" in str(body) for body in self.bodies)


class Runner:
    """Runs layouts of one workload; the retriever is built once."""

    def __init__(
        self,
        workload: Workload,
        prices: PriceBook,
        folder: Path,
        assumptions: Assumptions | None = None,
        *,
        live: bool = False,
        counter: Counter | None = None,
    ) -> None:
        """Validates the model and, for live runs, that a key is set.

        Args:
            workload: what to run.
            prices: the price book.
            folder: output folder of the traces.
            assumptions: assumptions of the loopback server.
            live: use the real API, which costs money.
            counter: counts tokens; default is by characters.

        Raises:
            UserError: unknown model, or no key for a live run.
        """
        prices.resolve(workload.model)
        if live and not os.environ.get(KEY):
            raise UserError(f"live=true needs {KEY} in the environment")
        self.workload = workload
        self.prices = prices
        self.folder = folder
        self.assumptions = assumptions or Assumptions()
        self.live = live
        self.counter = counter or CharCounter()
        self._tool = search_tool(workload.sizes)
        self._system = prompts.system_prompt(workload.sizes.system)

    def run(
        self,
        layout: str,
        placement: Placement | None = None,
        *,
        label: str = "",
        plan_ids: Callable[[int], str] | None = None,
    ) -> WorkloadRun:
        """Runs one layout.

        Args:
            layout: one of LAYOUTS.
            placement: markers to set on every request; None keeps those of the layout.
            label: name of the trace file; defaults to the layout.
            plan_ids: id of the n-th request, for placements by request id.

        Raises:
            UserError: unknown layout.
        """
        if layout not in LAYOUTS:
            raise UserError(f"layout={layout}: allowed are {', '.join(LAYOUTS)}")
        path = self.folder / f"{label or layout}.jsonl"
        path.unlink(missing_ok=True)
        clock = VirtualClock(self.workload.start)
        counter = self.counter
        recorder = Recorder(path, counter=counter, clock=time.time if self.live else clock)
        placers = [] if placement is None else [Placer(placement, counter, plan_ids).sync]
        # the recorder is innermost, so that it sees the final request
        middleware = [*placers, recorder.sync]
        if self.live:
            middleware.insert(0, Salter(secrets.token_hex(4)).sync)
            answers = self._converse(layout, middleware, recorder, time.sleep, {})
            bodies: list[Mapping[str, Any]] = []
        else:

            def answer(body: Mapping[str, Any]) -> list[dict[str, Any]]:
                clock.now += self.workload.service
                return prompts.script(body)

            def pass_time(seconds: float) -> None:
                clock.now += seconds

            engine = Engine(
                self.prices, responder=answer, counter=counter, assumptions=self.assumptions, clock=clock
            )
            with LoopbackServer(engine) as server:
                where = {"base_url": server.url, "api_key": "loopback"}
                answers = self._converse(layout, middleware, recorder, pass_time, where)
            bodies = [served.body for served in engine.log]
        trace = RecordedTrace(path, self.prices)
        return WorkloadRun(layout, list(trace.requests(self.assumptions)), bodies, answers)

    def _converse(
        self,
        layout: str,
        middleware: list[Any],
        recorder: Recorder,
        wait: Callable[[float], None],
        where: Mapping[str, Any],
    ) -> list[str]:
        answers = []
        conversation = self._conversation(layout, middleware, where)
        for number in range(self.workload.conversations):
            with recorder.session(f"conversation {number}"):
                for turn, question in enumerate(questions(self.workload.turns, self.workload.seed + number)):
                    if turn or number:
                        wait(self.workload.gap)
                    answers.append(conversation.ask(question, f"thread-{number}"))
        return answers

    def _conversation(self, layout: str, middleware: list[Any], where: Mapping[str, Any]) -> Conversation:
        tool, system, model = self._tool, self._system, self.workload.model
        if layout == "article_explicit":
            client = anthropic.Anthropic(max_retries=0, middleware=middleware, **where)
            return ContextInSystem(client, model, tool, system)
        chat = _chat(model, middleware, where)
        builders: dict[str, Callable[[ChatAnthropic, BaseTool, str], Conversation]] = {
            "article_graph": partial(_separate, first_question=True),
            "corrected": partial(_separate, first_question=False),
            "append_only": _append_only,
            "agent": partial(Agent, ttl=None),
            "agent_5m": partial(Agent, ttl="5m"),
            "agent_1h": partial(Agent, ttl="1h"),
        }
        return builders[layout](chat, tool, system)


def _separate(chat: ChatAnthropic, tool: BaseTool, system: str, *, first_question: bool) -> Separate:
    grader = chat.model_copy(update={"max_tokens": 256}).with_structured_output(prompts.Grade)
    search = chat.bind_tools([tool])
    return Separate(chat, tool, system, search=search, grader=grader, first_question=first_question)


def _append_only(chat: ChatAnthropic, tool: BaseTool, system: str) -> AppendOnly:
    bound = chat.bind_tools([tool])
    return AppendOnly(bound, tool, system, search=bound, grader=bound)


def _chat(model: str, middleware: list[Any], where: Mapping[str, Any]) -> ChatAnthropic:
    """A chat model whose SDK client has the middleware (ChatAnthropic has no parameter for it)."""
    settings: dict[str, Any] = {"model": model, "max_tokens": 4096, "max_retries": 0, **where}
    chat = ChatAnthropic(**settings)
    # sets the cached value of a cached property
    object.__setattr__(chat, "_client", chat._client.with_options(middleware=middleware))
    return chat
