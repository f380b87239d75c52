"""Answers of the loopback server: from a script or a local model, never from Claude."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Json = Mapping[str, Any]

Responder = Callable[[Json], list[dict[str, Any]]]
"""Maps a request's JSON to the content blocks of the answer (text or tool_use)."""


def fixed(text: str = "This is a scripted answer.") -> Responder:
    """Answers every request with the same text."""
    return lambda body: [{"type": "text", "text": text}]


def in_turn(answers: Iterable[list[dict[str, Any]]]) -> Responder:
    """Answers from a list in order; the last one repeats."""
    remaining = list(answers)

    def respond(body: Json) -> list[dict[str, Any]]:
        return remaining.pop(0) if len(remaining) > 1 else remaining[0]

    return respond


def local(generate: Callable[[str], str]) -> Responder:
    """Answers with a local model.

    Args:
        generate: maps the conversation as plain text to its continuation.
    """
    return lambda body: [{"type": "text", "text": generate(transcript(body))}]


def transcript(body: Json) -> str:
    """A request's system prompt and messages as plain text."""
    parts = [plain(body.get("system") or "")]
    parts += [f"{message['role']}: {plain(message['content'])}" for message in body.get("messages") or ()]
    return "\n\n".join(part for part in parts if part)


def plain(content: Any) -> str:
    """The text of a string, a block or a list of blocks, including tool results."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return plain(content.get("text") or content.get("content") or "")
    return "\n".join(filter(None, map(plain, content)))
