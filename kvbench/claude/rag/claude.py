"""Layouts of the Agentic-RAG workload that only work with the Claude API."""

from __future__ import annotations

from typing import Literal

import anthropic
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_anthropic.middleware import AnthropicPromptCachingMiddleware
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver

from kvbench.claude.rag import prompts
from kvbench.claude.rag.graphs import run_turn


class Agent:
    """LangChain's create_agent, with or without AnthropicPromptCachingMiddleware."""

    def __init__(
        self, chat: ChatAnthropic, tool: BaseTool, system: str, ttl: Literal["5m", "1h"] | None
    ) -> None:
        """Builds the agent with a checkpointer."""
        middleware = [] if ttl is None else [AnthropicPromptCachingMiddleware(ttl=ttl)]
        self._graph = create_agent(
            chat, [tool], system_prompt=system, middleware=middleware, checkpointer=InMemorySaver()
        )

    def ask(self, question: str, thread: str) -> str:
        """See Conversation."""
        return run_turn(self._graph, question, thread)


class ContextInSystem:
    """The article's explicit code: retrieval first, one request per turn, context as a system block.

    The last tool and the context block carry markers; the context block differs at every question.
    """

    def __init__(self, client: anthropic.Anthropic, model: str, tool: BaseTool, system: str) -> None:
        """Keeps one message list per thread."""
        self._client = client
        self._model = model
        self._tool = tool
        self._system = system
        self._history: dict[str, list[anthropic.types.MessageParam]] = {}

    def ask(self, question: str, thread: str) -> str:
        """See Conversation."""
        marker: anthropic.types.CacheControlEphemeralParam = {"type": "ephemeral"}
        history = self._history.setdefault(thread, [])
        history.append({"role": "user", "content": f"{prompts.ANSWER}\n{question}"})
        context = self._tool.invoke({"query": question})
        message = self._client.messages.create(
            model=self._model,
            max_tokens=4096,
            tools=[
                {
                    "name": self._tool.name,
                    "description": self._tool.description,
                    "input_schema": self._tool.get_input_jsonschema(),
                    "cache_control": marker,
                }
            ],
            system=[
                {"type": "text", "text": self._system},
                {"type": "text", "text": f"Search result:\n\n{context}", "cache_control": marker},
            ],
            messages=history,
        )
        # an answer may begin with a tool call; only its text is added to the history
        text = "".join(block.text for block in message.content if block.type == "text")
        history.append({"role": "assistant", "content": text})
        return text
