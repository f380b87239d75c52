"""The Agentic-RAG workload on a self-hosted model: runs the graphs and records the cache hits of every request."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
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
from kvbench.experiments.vllm_rag.config import LAYOUTS, Grades, Workload
from kvbench.experiments.vllm_rag.steps import GraphStep, QuestionResult
from kvbench.vllm.errors import ServingError

MAX_QUERY = 48  # characters of a search query, at worst one token each
# the article's graph grades in the edge after the retriever node, which itself sends no request
NODES = {"retrieve": "grade"}


class RelevantGrade(prompts.Grade):
    """A grade that is always yes, so that all layouts take the same path."""

    # grades are read-only
    binary_score: Literal["yes"]  # pyright: ignore[reportIncompatibleVariableOverride]


class RequestRecorder(BaseCallbackHandler):
    """Records every request of a graph with the node that sent it.

    Args:
        layout: the graph's prompt layout.
        reports_cached: a missing number of cached tokens means 0, not unknown.
    """

    # by default LangChain logs errors of callbacks and continues
    raise_error = True

    def __init__(self, layout: str, reports_cached: bool) -> None:
        self.steps: list[GraphStep] = []
        self.conversation, self.turn = 0, 0
        self._layout = layout
        self._reports_cached = reports_cached
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
        """Its answer is complete."""
        generation = response.generations[0][0]
        assert isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage)
        usage = generation.message.usage_metadata
        if usage is None:
            raise ServingError("the server's answer has no usage, so its tokens are unknown")
        cached = (usage.get("input_token_details") or {}).get("cache_read")
        if cached is None and self._reports_cached:
            cached = 0
        with self._lock:
            node, sent = self._sent.pop(run_id)
            seconds = time.perf_counter() - sent
            counts = usage["input_tokens"], cached, usage["output_tokens"]
            self.steps.append(GraphStep(self._layout, self.conversation, self.turn, node, *counts, seconds))


def chat_model(
    base_url: str,
    model: str,
    *,
    salt: str,
    max_tokens: int,
    timeout: float,
    sent: list[dict[str, Any]] | None = None,
) -> ChatOpenAI:
    """A LangChain model on a vLLM server.

    Args:
        base_url: of the server, without `/v1`.
        model: its name at the server.
        salt: separates the run's cached prefixes from others (vLLM's `cache_salt`).
        max_tokens: longest answer.
        timeout: seconds for one answer.
        sent: is given the JSON of every request.
    """

    def keep(request: httpx2.Request) -> None:
        if sent is not None:
            sent.append(json.loads(request.content))

    return ChatOpenAI(
        base_url=f"{base_url}/v1",
        model=model,
        api_key=SecretStr("none"),
        temperature=0.0,
        max_completion_tokens=max_tokens,
        # a repeated request would hit its own prefix
        max_retries=0,
        timeout=timeout,
        use_responses_api=False,
        extra_body={"cache_salt": salt},
        http_client=httpx2.Client(trust_env=False, event_hooks={"request": [keep]}),
    )


def conversation(layout: str, chat: ChatOpenAI, tool: BaseTool, system: str, grades: Grades) -> Conversation:
    """A layout's graph on a model with guided decoding.

    The tool call and the grade are forced (a named tool, a JSON schema), so that models too small to choose a tool
    take the same steps; the article leaves the choice to the model. Neither changes the prompt's prefix.

    Args:
        layout: one of `LAYOUTS`.
        chat: the model.
        tool: the retrieval tool.
        system: the system prompt.
        grades: see `Workload`.

    Raises:
        UserError: an unknown layout.
    """
    grade = RelevantGrade if grades == "yes" else prompts.Grade
    if layout not in LAYOUTS:
        raise UserError(f"layouts: {layout!r} is not allowed, allowed are {', '.join(LAYOUTS)}")
    schema = tool_schema(tool)
    search = chat.bind_tools([schema], tool_choice=tool.name)
    if layout == "append_only":
        # the tools stay in the prompt so that its beginning does not change
        bound = chat.bind_tools([schema], tool_choice="none")
        # with its own `response_format` argument LangChain would rewrite the tools too
        extra = {**(chat.extra_body or {}), "response_format": grade_format(grade)}
        grader = chat.model_copy(update={"extra_body": extra}).bind_tools([schema], tool_choice="none")
        return AppendOnly(bound, tool, system, search=search, grader=grader)
    grader = chat.with_structured_output(grade, method="json_schema")
    return Separate(
        chat, tool, system, search=search, grader=grader, first_question=layout == "article_graph"
    )


def tool_schema(tool: BaseTool) -> dict[str, Any]:
    """The tool as described to the server; the length of queries is limited, as a small model may never end one."""
    schema = convert_to_openai_tool(tool)
    schema["function"]["parameters"]["properties"]["query"]["maxLength"] = MAX_QUERY
    return schema


def grade_format(grade: type[prompts.Grade]) -> Mapping[str, Any]:
    """A `response_format` that restricts the answer to a grade."""
    schema = grade.model_json_schema()
    return {"type": "json_schema", "json_schema": {"name": "Grade", "schema": schema}}


def run(
    layout: str, chat: ChatOpenAI, workload: Workload, tool: BaseTool, *, reports_cached: bool
) -> tuple[list[GraphStep], list[QuestionResult]]:
    """Runs the workload with one layout.

    A turn that fails (a search without a tool call, a prompt beyond the model's context) is recorded and ends its
    conversation, as later turns would have another prefix.

    Args:
        layout: one of `LAYOUTS`.
        chat: of `chat_model`.
        workload: the conversations.
        tool: of a `Retriever`.
        reports_cached: see `RequestRecorder`.

    Returns:
        The requests, and the questions with their answers.
    """
    recorder = RequestRecorder(layout, reports_cached)
    turns: list[QuestionResult] = []
    system = prompts.system_prompt(workload.sizes.system)
    graph = conversation(
        layout, chat.model_copy(update={"callbacks": [recorder]}), tool, system, workload.grades
    )
    for number in range(workload.conversations):
        for turn, question in enumerate(questions(workload.turns, workload.seed + number)):
            recorder.conversation, recorder.turn = number, turn
            try:
                answer, error = graph.ask(question, f"thread-{number}"), ""
                if (node := recorder.steps[-1].node) != "answer":
                    answer, error = "", f"ended at {node}, without a whole tool call: {answer[:100]!r}"
            except (OpenAIError, GraphRecursionError, ValueError) as problem:
                answer, error = "", f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
            turns.append(QuestionResult(layout, number, turn, question, answer, error))
            if error:
                break
    return recorder.steps, turns


class Retriever:
    """The retrieval tool, made on first use because embedding the passages takes seconds.

    Args:
        sizes: sizes of the prompt's parts.
    """

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes

    @cached_property
    def tool(self) -> BaseTool:
        """The tool, the same for all layouts."""
        return search_tool(self._sizes)
