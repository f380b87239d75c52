"""The workload's prompts and tools, and the script that stands in for the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from kvbench.claude.responder import plain

SYSTEM = (
    "You help the staff of a ferry company. Look things up with search_knowledge_base before you answer.\n"
    "Rules: rely on what the search returned and nothing else; if it returned nothing useful, say that no "
    "information was found; name the passages that you used; be short and exact; answer in English."
)
HANDBOOK = (
    "House rule {n}: write numbers as digits with their unit, quote titles of passages in square brackets, "
    "and when two passages disagree give both with their titles and say which is newer. "
)
GRADE = "Grade the search result: does it bear on the question? Answer yes or no."
REWRITE = "Rewrite the question so that a search finds more. Answer with the new question only."
ANSWER = "Answer the question from the search result."

TOOL_NAME = "search_knowledge_base"
TOOL_TEXT = "Searches the company's knowledge base and returns the passages nearest to the query."
TOOL_NOTE = " Queries are plain sentences in English; name the line and the topic; one topic per query ({n})."


class Grade(BaseModel):
    """Whether a search result bears on the question."""

    binary_score: Literal["yes", "no"] = Field(description="yes if the result bears on the question, else no")


def system_prompt(tokens: int) -> str:
    """The system prompt, padded with house rules to about `tokens` tokens (0: unpadded)."""
    return _padded(SYSTEM + "\n", HANDBOOK, tokens)


def tool_description(tokens: int) -> str:
    """The tool's description, padded to about `tokens` tokens."""
    return _padded(TOOL_TEXT, TOOL_NOTE, tokens)


def _padded(text: str, more: str, tokens: int) -> str:
    number = 0
    while len(text) < 4 * tokens:
        number += 1
        text += more.format(n=number)
    return text


def script(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Stands in for the model: searches, rejects the results of vague questions and rewrites those, then answers."""
    choice = body.get("tool_choice") or {}
    messages = body["messages"]
    last = plain(messages[-1]["content"])
    question = _question(messages)
    if choice.get("type") == "tool":
        return [_call(body, choice["name"], {"binary_score": "no" if _vague(last) else "yes"})]
    if GRADE in last:
        return [{"type": "text", "text": "no" if _vague(question) else "yes"}]
    if REWRITE in last:
        return [{"type": "text", "text": _rewritten(last, question)}]
    if ANSWER in last or not body.get("tools") or _has_result(messages[-1]):
        return [{"type": "text", "text": _answer(messages, question)}]
    return [_call(body, TOOL_NAME, {"query": last.splitlines()[-1]})]


def _call(body: Mapping[str, Any], name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    # ids must be unique within a conversation and reproducible
    return {
        "type": "tool_use",
        "id": f"toolu_{len(body['messages'])}",
        "name": name,
        "input": arguments,
    }


def _question(messages: Sequence[Mapping[str, Any]]) -> str:
    """The latest text that ends in a question mark: the user's question, or its rewritten form."""
    for message in reversed(messages):
        for line in reversed(plain(message["content"]).splitlines()):
            if line.strip().endswith("?") and line.strip() not in GRADE:
                return line.strip()
    return ""


def _vague(text: str) -> bool:
    return "And what about" in text


def _rewritten(last: str, question: str) -> str:
    topic = question.removeprefix("And what about").rstrip("?").strip() or "tickets"
    return f"What are the rules of the Harbour Line on {topic}?"


def _has_result(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    return not isinstance(content, str) and any(part.get("type") == "tool_result" for part in content)


def _answer(messages: Sequence[Mapping[str, Any]], question: str) -> str:
    lines = (line for message in reversed(messages) for line in plain(message["content"]).splitlines())
    passage = next((line for line in lines if line.startswith("[")), "[nothing]")
    return (
        f"On your question ({question.rstrip('?')}): the passage {passage} has the rule. "
        + "It applies. " * 20
    )
