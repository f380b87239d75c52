"""The Agentic-RAG workload in LangGraph: the article's layout, a corrected one, and an append-only one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import anthropic
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_anthropic.middleware import AnthropicPromptCachingMiddleware
from langchain_core.documents import Document
from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from kvbench.promptcache.rag import prompts
from kvbench.promptcache.rag.corpus import documents
from kvbench.promptcache.rag.embedding import MiniLM

LIMIT = 60  # steps of a graph within one turn; a question is rewritten at most once by the script


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the parts of a prompt; the defaults are those of the article's code.

    Attributes:
        system: tokens that the system prompt is filled up to, 0 to leave it short.
        tool: tokens that the tool's description is filled up to.
        passage: characters per passage.
        overlap: characters that neighbouring passages share.
        passages: passages per search.
    """

    system: int = 0
    tool: int = 0
    passage: int = 500
    overlap: int = 100
    passages: int = 5


class Conversation(Protocol):
    """One way to run the workload."""

    def ask(self, question: str, thread: str) -> str:
        """Runs one turn of a conversation and returns the answer."""
        ...


def search_tool(sizes: Sizes) -> BaseTool:
    """The retrieval tool over an in-memory vector store with the offline embedding."""
    store = InMemoryVectorStore(MiniLM())
    passages = documents(sizes.passage, sizes.overlap)
    store.add_documents(
        [Document(page_content=passage.text, metadata={"source": passage.title}) for passage in passages]
    )

    def search_knowledge_base(query: str) -> str:
        found = store.similarity_search(query, k=sizes.passages)
        return "\n\n---\n\n".join(f"[{hit.metadata['source']}]\n{hit.page_content}" for hit in found)

    return StructuredTool.from_function(
        search_knowledge_base, description=prompts.tool_description(sizes.tool)
    )


class Separate:
    """The article's graph: search, grade, rewrite and answer each with a prompt of its own.

    The three kinds of prompt (tools + system, forced grading tool, system only) share no prefix.
    """

    def __init__(self, chat: ChatAnthropic, tool: BaseTool, system: str, *, first_question: bool) -> None:
        """Builds the graph with a checkpointer.

        Args:
            chat: the model.
            tool: the retrieval tool.
            system: the system prompt.
            first_question: grade and answer the conversation's first question on every turn, as the article's
                code does, instead of the current one.
        """
        self._chat = chat
        self._tool = tool
        self._system = system
        self._first = first_question
        self._grader = chat.model_copy(update={"max_tokens": 256}).with_structured_output(prompts.Grade)
        graph = StateGraph(MessagesState)
        graph.add_node("search", self._search)
        graph.add_node("retrieve", ToolNode([tool]))
        graph.add_node("rewrite", self._rewrite)
        graph.add_node("answer", self._answer)
        graph.add_edge(START, "search")
        graph.add_conditional_edges("search", tools_condition, {"tools": "retrieve", END: END})
        graph.add_conditional_edges("retrieve", self._grade)
        graph.add_edge("answer", END)
        graph.add_edge("rewrite", "search")
        self._graph = graph.compile(checkpointer=InMemorySaver())

    def ask(self, question: str, thread: str) -> str:
        """See Conversation."""
        return _run(self._graph, question, thread)

    def _question(self, state: MessagesState) -> str:
        asked = [message for message in state["messages"] if isinstance(message, HumanMessage)]
        return str((asked[0] if self._first else asked[-1]).content)

    def _search(self, state: MessagesState) -> dict[str, Any]:
        messages = [SystemMessage(self._system), *state["messages"]]
        return {"messages": [self._chat.bind_tools([self._tool]).invoke(messages)]}

    def _grade(self, state: MessagesState) -> Literal["answer", "rewrite"]:
        text = f"{prompts.GRADE}\nQuestion: {self._question(state)}\nSearch result:\n{_last(state)}"
        graded = self._grader.invoke([HumanMessage(text)])
        assert isinstance(graded, prompts.Grade)
        return "answer" if graded.binary_score == "yes" else "rewrite"

    def _rewrite(self, state: MessagesState) -> dict[str, Any]:
        text = f"{prompts.REWRITE}\nQuestion:\n{self._question(state)}"
        reply = self._chat.invoke([HumanMessage(text)])
        return {"messages": [HumanMessage(reply.text)]}

    def _answer(self, state: MessagesState) -> dict[str, Any]:
        text = f"Search result:\n{_last(state)}\n\n{prompts.ANSWER}\n{self._question(state)}"
        return {"messages": [self._chat.invoke([SystemMessage(self._system), HumanMessage(text)])]}


class AppendOnly:
    """Every step continues one message list with the same tools and system prompt: one growing prefix."""

    def __init__(self, chat: ChatAnthropic, tool: BaseTool, system: str) -> None:
        """Builds the graph with a checkpointer."""
        self._chat = chat.bind_tools([tool])
        self._system = system
        graph = StateGraph(MessagesState)
        graph.add_node("search", self._step(None))
        graph.add_node("retrieve", ToolNode([tool]))
        graph.add_node("grade", self._step(prompts.GRADE))
        graph.add_node("rewrite", self._step(prompts.REWRITE))
        graph.add_node("again", self._step("Search again with the new question:", quote=True))
        graph.add_node("answer", self._step(prompts.ANSWER))
        graph.add_edge(START, "search")
        graph.add_conditional_edges("search", tools_condition, {"tools": "retrieve", END: END})
        graph.add_edge("retrieve", "grade")
        graph.add_conditional_edges("grade", self._graded)
        graph.add_edge("rewrite", "again")
        graph.add_conditional_edges("again", tools_condition, {"tools": "retrieve", END: END})
        graph.add_edge("answer", END)
        self._graph = graph.compile(checkpointer=InMemorySaver())

    def ask(self, question: str, thread: str) -> str:
        """See Conversation."""
        return _run(self._graph, question, thread)

    def _step(
        self, instruction: str | None, *, quote: bool = False
    ) -> Callable[[MessagesState], dict[str, Any]]:
        def step(state: MessagesState) -> dict[str, Any]:
            added: list[AnyMessage] = []
            if instruction is not None:
                text = f"{instruction}\n{state['messages'][-1].text}" if quote else instruction
                added = [HumanMessage(text)]
            reply = self._chat.invoke([SystemMessage(self._system), *state["messages"], *added])
            return {"messages": [*added, reply]}

        return step

    def _graded(self, state: MessagesState) -> Literal["answer", "rewrite"]:
        return "answer" if state["messages"][-1].text.strip().lower().startswith("yes") else "rewrite"


class Agent:
    """LangChain's create_agent, with AnthropicPromptCachingMiddleware or without."""

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
        return _run(self._graph, question, thread)


class ContextInSystem:
    """The article's explicit code: retrieved first, one request per turn, context as a system block.

    Marked are the last tool and the context block, which is another one at every question.
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
        mark: anthropic.types.CacheControlEphemeralParam = {"type": "ephemeral"}
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
                    "cache_control": mark,
                }
            ],
            system=[
                {"type": "text", "text": self._system},
                {"type": "text", "text": f"Search result:\n\n{context}", "cache_control": mark},
            ],
            messages=history,
        )
        # an answer may begin with a tool call; only its text goes into the history
        text = "".join(block.text for block in message.content if block.type == "text")
        history.append({"role": "assistant", "content": text})
        return text


def _run(graph: Any, question: str, thread: str) -> str:
    config: Mapping[str, Any] = {"configurable": {"thread_id": thread}, "recursion_limit": LIMIT}
    messages: Sequence[AnyMessage] = graph.invoke({"messages": [HumanMessage(question)]}, config)["messages"]
    return messages[-1].text


def _last(state: MessagesState) -> str:
    result = state["messages"][-1]
    assert isinstance(result, ToolMessage)
    return str(result.content)
