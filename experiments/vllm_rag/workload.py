"""The Agentic-RAG workload on a self-hosted model: which step of which prompt layout finds its prefix in the cache."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, Literal
from uuid import UUID

import httpx2
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphRecursionError
from openai import OpenAIError
from pydantic import SecretStr

from kvbench.claude.rag import prompts
from kvbench.claude.rag.corpus import questions
from kvbench.claude.rag.graphs import AppendOnly, Conversation, Separate, search_tool
from kvbench.claude.rag.sizes import Sizes
from kvbench.config.errors import UserError
from kvbench.vllm.errors import ServingError

Grades = Literal["yes", "model"]
LAYOUTS = ("article_graph", "corrected", "append_only")
QUERY = 48  # characters of a search's query, each of them a token at worst
# the article's graph grades in the edge after the retriever, which itself asks no model
NODES = {"retrieve": "grade"}


@dataclass(frozen=True)
class Step:
    """One request of the workload.

    Attributes:
        layout: which graph.
        conversation: its number, from 0.
        turn: the question's number, from 0.
        node: the step of the graph: search, grade, rewrite, again (append-only's second search), answer.
        prompt_tokens: as the server counted them.
        cached_tokens: of them found in the prefix cache; None where the server does not say.
        output_tokens: as the server counted them.
        seconds: from sending to the whole answer.
    """

    layout: str
    conversation: int
    turn: int
    node: str
    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    seconds: float


@dataclass(frozen=True)
class Turn:
    """One question and what came of it.

    Attributes:
        layout: which graph.
        conversation: its number, from 0.
        turn: the question's number, from 0.
        question: what was asked.
        answer: the answer's text, empty if the turn failed.
        error: why it failed, "" if it did not.
    """

    layout: str
    conversation: int
    turn: int
    question: str
    answer: str
    error: str = ""


class Relevant(prompts.Grade):
    """The grade that lets every layout take the same path."""

    # grades are read only
    binary_score: Literal["yes"]  # pyright: ignore[reportIncompatibleVariableOverride]


class Watch(BaseCallbackHandler):
    """Notes every request of a graph with the node that made it."""

    # otherwise LangChain logs what goes wrong in here, and goes on
    raise_error = True

    def __init__(self, layout: str, cached_known: bool) -> None:
        """Nothing noted yet.

        Args:
            layout: which graph.
            cached_known: the server says how many tokens it found in its cache, and leaves the number out for none.
        """
        self.steps: list[Step] = []
        self.place: tuple[int, int] = (0, 0)
        self._layout = layout
        self._cached_known = cached_known
        self._sent: dict[UUID, tuple[str, float]] = {}
        self._lock = Lock()

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """A request is sent."""
        node = str((metadata or {})["langgraph_node"])
        with self._lock:
            self._sent[run_id] = NODES.get(node, node), time.perf_counter()

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        """Its answer is there."""
        generation = response.generations[0][0]
        assert isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage)
        usage = generation.message.usage_metadata
        if usage is None:
            raise ServingError("the server's answer has no usage, so its tokens are unknown")
        cached = (usage.get("input_token_details") or {}).get("cache_read")
        if cached is None and self._cached_known:
            cached = 0
        with self._lock:
            node, sent = self._sent.pop(run_id)
            seconds = time.perf_counter() - sent
            counts = usage["input_tokens"], cached, usage["output_tokens"]
            self.steps.append(Step(self._layout, *self.place, node, *counts, seconds))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is asked.

    Attributes:
        turns: questions per conversation.
        conversations: conversations, one after another.
        grades: `yes` holds every grade to yes, so that all layouts take the same path: search, grade, answer.
            `model` leaves it to the model, as the article does; a small one may rewrite without end.
        sizes: sizes of the prompt's parts.
        max_tokens: longest answer of a step.
        seed: of the questions.
    """

    turns: int = 4
    conversations: int = 1
    grades: Grades = "yes"
    sizes: Sizes
    max_tokens: int = 64
    seed: int = 0


def chat_model(base_url: str, model: str, *, salt: str, max_tokens: int, timeout: float) -> ChatOpenAI:
    """A LangChain model on a vLLM server.

    Args:
        base_url: of the server, without `/v1`.
        model: name under which it is served.
        salt: keeps the run's cached prefixes to itself (vLLM's `cache_salt`).
        max_tokens: longest answer.
        timeout: seconds for one answer.
    """
    return ChatOpenAI(
        base_url=f"{base_url}/v1",
        model=model,
        api_key=SecretStr("none"),
        temperature=0.0,
        max_completion_tokens=max_tokens,
        # a repeated request would find its own prefix
        max_retries=0,
        timeout=timeout,
        use_responses_api=False,
        extra_body={"cache_salt": salt},
        http_client=httpx2.Client(trust_env=False),
    )


def conversation(layout: str, chat: ChatOpenAI, tool: BaseTool, system: str, grades: Grades) -> Conversation:
    """A layout's graph on a model that is held to its forms by guided decoding.

    The tool call and the grade are forced (a named tool, a JSON schema), so that models too small to choose a tool
    go through the same steps; the article leaves the choice to the model. Neither changes the prompt's prefix.

    Args:
        layout: one of LAYOUTS.
        chat: the model.
        tool: the retrieval tool.
        system: the system prompt.
        grades: see `Workload`.

    Raises:
        UserError: unknown layout.
    """
    grade = Relevant if grades == "yes" else prompts.Grade
    if layout not in LAYOUTS:
        raise UserError(f"layouts: {layout!r} is not allowed, allowed are {', '.join(LAYOUTS)}")
    called = tool_schema(tool)
    search = chat.bind_tools([called], tool_choice=tool.name)
    if layout == "append_only":
        # the tools stay in the prompt, or its beginning would change
        bound = chat.bind_tools([called], tool_choice="none")
        # given as `response_format` itself, LangChain would rewrite the tools too
        extra = {**(chat.extra_body or {}), "response_format": grade_format(grade)}
        grader = chat.model_copy(update={"extra_body": extra}).bind_tools([called], tool_choice="none")
        return AppendOnly(bound, tool, system, search=search, grader=grader)
    grader = chat.with_structured_output(grade, method="json_schema")
    return Separate(
        chat, tool, system, search=search, grader=grader, first_question=layout == "article_graph"
    )


def tool_schema(tool: BaseTool) -> dict[str, Any]:
    """The tool as the server is told of it; queries are bounded, or a small model may never end one."""
    schema = convert_to_openai_tool(tool)
    schema["function"]["parameters"]["properties"]["query"]["maxLength"] = QUERY
    return schema


def grade_format(grade: type[prompts.Grade]) -> Mapping[str, Any]:
    """`response_format` that lets a model answer with a grade only."""
    schema = grade.model_json_schema()
    return {"type": "json_schema", "json_schema": {"name": "Grade", "schema": schema}}


def run(
    layout: str, chat: ChatOpenAI, workload: Workload, tool: BaseTool, *, cached_known: bool
) -> tuple[list[Step], list[Turn]]:
    """Runs the workload with one layout.

    A turn that fails (a search without a call, a prompt beyond the model's context) is noted, and its conversation
    ends: what follows would have another prefix.

    Args:
        layout: one of LAYOUTS.
        chat: of `chat_model`.
        workload: what is asked.
        tool: of a `Retriever`.
        cached_known: see `Watch`.
    """
    watch = Watch(layout, cached_known)
    turns: list[Turn] = []
    system = prompts.system_prompt(workload.sizes.system)
    graph = conversation(
        layout, chat.model_copy(update={"callbacks": [watch]}), tool, system, workload.grades
    )
    for number in range(workload.conversations):
        for place, question in enumerate(questions(workload.turns, workload.seed + number)):
            watch.place = number, place
            try:
                answer, error = graph.ask(question, f"thread-{number}"), ""
                if (node := watch.steps[-1].node) != "answer":
                    answer, error = "", f"ended at {node}, without a whole tool call: {answer[:100]!r}"
            except (OpenAIError, GraphRecursionError, ValueError) as problem:
                answer, error = "", f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
            turns.append(Turn(layout, number, place, question, answer, error))
            if error:
                break
    return watch.steps, turns


class Retriever:
    """The retrieval tool, made when it is first needed: embedding the passages takes seconds."""

    def __init__(self, sizes: Sizes) -> None:
        """Nothing is embedded yet."""
        self._sizes = sizes

    @cached_property
    def tool(self) -> BaseTool:
        """The tool, the same for all layouts."""
        return search_tool(self._sizes)


def by_node(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """One row per layout and node, and one per layout: tokens, hit rate, seconds.

    The hit rate is cached over prompt tokens; the first request of a conversation, which can hit nothing but other
    conversations' prefixes, is in it.
    """
    rows = []
    for layout in dict.fromkeys(step.layout for step in steps):
        own = [step for step in steps if step.layout == layout]
        for node in [*dict.fromkeys(step.node for step in own), "all"]:
            part = [step for step in own if node in (step.node, "all")]
            prompt = sum(step.prompt_tokens for step in part)
            cached = [step.cached_tokens for step in part]
            hits = None if None in cached else sum(filter(None, cached))
            rows.append(
                {
                    "layout": layout,
                    "node": node,
                    "requests": len(part),
                    "prompt_tokens": prompt,
                    "cached_tokens": hits,
                    "computed_tokens": None if hits is None else prompt - hits,
                    "hit_rate": None if hits is None else hits / prompt,
                    "output_tokens": sum(step.output_tokens for step in part),
                    "seconds": sum(step.seconds for step in part),
                }
            )
    return rows
