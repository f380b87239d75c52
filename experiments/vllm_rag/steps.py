"""Results of the Agentic-RAG workload: requests by graph step, and questions; imports no LangChain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GraphStep:
    """One request of the workload.

    Attributes:
        layout: the graph's prompt layout.
        conversation: its number, from 0.
        turn: the question's number, from 0.
        node: the node of the graph: search, grade, rewrite, again (append-only's second search), answer.
        prompt_tokens: as the server counts them.
        cached_tokens: prompt tokens found in the prefix cache; None if the server does not report them.
        output_tokens: as the server counts them.
        seconds: from sending to the complete answer.
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
class QuestionResult:
    """One question of a conversation and its answer.

    Attributes:
        layout: the graph's prompt layout.
        conversation: its number, from 0.
        turn: the question's number, from 0.
        question: the question.
        answer: the answer's text, "" if the turn failed.
        error: why it failed, "" if it did not.
    """

    layout: str
    conversation: int
    turn: int
    question: str
    answer: str
    error: str = ""


def by_node(steps: Sequence[GraphStep]) -> list[dict[str, Any]]:
    """One row per layout and node, and one per layout: tokens, hit rate, seconds.

    The hit rate is cached over prompt tokens. It includes the first request of a conversation, which can hit only
    prefixes of other conversations.
    """
    rows = []
    for layout in dict.fromkeys(step.layout for step in steps):
        of_layout = [step for step in steps if step.layout == layout]
        for node in [*dict.fromkeys(step.node for step in of_layout), "all"]:
            part = [step for step in of_layout if node in (step.node, "all")]
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
                    "seconds": math.fsum(step.seconds for step in part),
                }
            )
    return rows
