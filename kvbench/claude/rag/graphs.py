"""The Agentic-RAG workload in LangGraph: the article's layout, a corrected one, and an append-only one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from langchain_core.documents import Document
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from kvbench.claude.rag import prompts
from kvbench.claude.rag.corpus import documents
from kvbench.claude.rag.embedding import MiniLM
from kvbench.claude.rag.sizes import Sizes

LIMIT = 60  # maximum of graph steps per turn; the script rewrites a question at most once


Replies = Runnable[LanguageModelInput, AIMessage]
"""A chat model, possibly with bound tools or structured output."""


class Conversation(Protocol):
    """One layout of the workload."""

    def ask(self, question: str, thread: str) -> str:
        """Runs one turn of a conversation and returns the answer."""
        ...


def search_tool(sizes: Sizes) -> BaseTool:
    """The retrieval tool: an in-memory vector store with the offline embedding."""
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
    """The article's graph: search, grade, rewrite and answer use separate prompts.

    The three kinds of prompt (tools + system, forced grading tool, system only) share no prefix.
    """

    def __init__(
        self,
        chat: Replies,
        tool: BaseTool,
        system: str,
        *,
        search: Replies,
        grader: Runnable[LanguageModelInput, Any],
        first_question: bool,
    ) -> None:
        """Builds the graph with a checkpointer.

        Args:
            chat: the model that rewrites and answers.
            tool: the retrieval tool.
            search: the model with the tool bound.
            grader: the model with `prompts.Grade` as structured output.
            system: the system prompt.
            first_question: on every turn, grade and answer the first question of the conversation instead of the
                current one, as the article's code does.
        """
        self._chat = chat
        self._search_chat = search
        self._grader = grader
        self._system = system
        self._first = first_question
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
        return run_turn(self._graph, question, thread)

    def _question(self, state: MessagesState) -> str:
        questions = [message for message in state["messages"] if isinstance(message, HumanMessage)]
        return str((questions[0] if self._first else questions[-1]).content)

    def _search(self, state: MessagesState) -> dict[str, Any]:
        messages = [SystemMessage(self._system), *state["messages"]]
        return {"messages": [self._search_chat.invoke(messages)]}

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
    """Every step extends one message list with the same tools and system prompt: one growing prefix."""

    def __init__(
        self, chat: Replies, tool: BaseTool, system: str, *, search: Replies, grader: Replies
    ) -> None:
        """Builds the graph with a checkpointer.

        Args:
            chat: the model with the tool bound; rewrites and answers.
            tool: the retrieval tool.
            system: the system prompt.
            search: the same, for the steps that should call the tool.
            grader: the same, for grading; it answers yes or no, or with a `prompts.Grade` in JSON.
        """
        self._system = system
        graph = StateGraph(MessagesState)
        graph.add_node("search", self._step(search, None))
        graph.add_node("retrieve", ToolNode([tool]))
        graph.add_node("grade", self._step(grader, prompts.GRADE))
        graph.add_node("rewrite", self._step(chat, prompts.REWRITE))
        graph.add_node("again", self._step(search, "Search again with the new question:", quote=True))
        graph.add_node("answer", self._step(chat, prompts.ANSWER))
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
        return run_turn(self._graph, question, thread)

    def _step(
        self, chat: Replies, instruction: str | None, *, quote: bool = False
    ) -> Callable[[MessagesState], dict[str, Any]]:
        def step(state: MessagesState) -> dict[str, Any]:
            added: list[AnyMessage] = []
            if instruction is not None:
                text = f"{instruction}\n{state['messages'][-1].text}" if quote else instruction
                added = [HumanMessage(text)]
            reply = chat.invoke([SystemMessage(self._system), *state["messages"], *added])
            return {"messages": [*added, reply]}

        return step

    def _graded(self, state: MessagesState) -> Literal["answer", "rewrite"]:
        text = state["messages"][-1].text.strip().lower()
        return "answer" if text.startswith("yes") or '"yes"' in text else "rewrite"


def run_turn(graph: Any, question: str, thread: str) -> str:
    """Runs a compiled graph on one question; returns the text of its last message."""
    config: Mapping[str, Any] = {"configurable": {"thread_id": thread}, "recursion_limit": LIMIT}
    messages: Sequence[AnyMessage] = graph.invoke({"messages": [HumanMessage(question)]}, config)["messages"]
    return messages[-1].text


def _last(state: MessagesState) -> str:
    result = state["messages"][-1]
    assert isinstance(result, ToolMessage)
    return str(result.content)
