"""Which tokens of a prompt are compressed, and what is different in a later turn of a conversation.

In a later turn, most methods find the cache as compressed after the first turn; what came since is fed to every
row. A method with `on_turn="filter"` compresses the whole conversation so far instead, as observed by the queries of
this turn: those of the tokens after the previous turn's prompt, its answer included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from kvbench.methods import Budget, Method, Resolved, Shape


class Split(NamedTuple):
    """The parts of a prompt: `compressed + question + [last]`.

    In a query-aware prompt with `first_token=dense`, the last token is compressed too.

    Attributes:
        compressed: tokens that are prefilled and compressed.
        question: tokens fed to every row after compression.
        last: the last prompt token.
    """

    compressed: list[int]
    question: list[int]
    last: int


@dataclass(frozen=True)
class Part:
    """The cells of a prompt that compress the same tokens.

    Attributes:
        split: the prompt's parts.
        first_turn: compressed tokens of the conversation's first turn, None outside of later turns.
        cells: indices of the cells.
        turn: compressed tokens of the present turn, whose queries alone observe; None for all.
        fed: see `Shape`.
    """

    split: Split
    first_turn: int | None
    cells: tuple[int, ...]
    turn: int | None = None
    fed: int = 0

    def resolve(self, method: Method, budget: Budget | None, shape: Shape) -> Resolved:
        """Apply a method's budget rule; in a later turn, to the length of the first turn.

        A budget that covers the first turn is resolved for the conversation so far, which it may not cover.

        Args:
            method: the method.
            budget: its budget, or None.
            shape: of the compressed tokens; `max_new_tokens` is the length of the answer alone.
        """
        shape = replace(shape, fed=self.fed)
        whole = replace(shape, max_new_tokens=shape.max_new_tokens + len(self.split.question))
        if self.first_turn is None:
            return method.resolve(whole, budget)
        resolved = method.resolve(replace(shape, compressed=self.first_turn), budget)
        return method.resolve(whole, budget) if resolved.covers_prompt else resolved


def split_prompt(
    ids: list[int], context_end: int, protocol: str, first_token: str, first_end: int | None = None
) -> Split:
    """Split a prompt at the end of what is compressed.

    Args:
        ids: the prompt's tokens.
        context_end: tokens before the question.
        protocol: "query_aware" or "query_agnostic".
        first_token: "compressed" or "dense", see `DecodeOptions`.
        first_end: in a later turn of a conversation, tokens of the first turn's prompt, which is compressed as it
            was then; else None.
    """
    if first_end is not None:
        end = first_end - (first_token == "compressed")
    elif protocol == "query_agnostic":
        end = min(context_end, len(ids) - 1)
    else:
        end = len(ids) - (first_token == "compressed")
    return Split(ids[:end], ids[end:-1], ids[-1])


def prompt_parts(
    ids: list[int], context_end: int, protocol: str, first_token: str, first_end: int | None,
    methods: Sequence[Method], turn_start: int | None = None,
) -> list[Part]:  # fmt: skip
    """Group the cells of a prompt by the tokens that they compress.

    Args:
        ids: the prompt's tokens.
        context_end: tokens before the question.
        protocol: "query_aware" or "query_agnostic".
        first_token: "compressed" or "dense".
        first_end: tokens of the first turn's prompt in a later turn of a conversation, else None.
        methods: one per cell.
        turn_start: tokens of the previous turn's prompt; by default that is the first turn's.

    Returns:
        One part, or in a later turn up to two: cells that keep the first turn's cache, and cells that filter again.
    """
    whole = split_prompt(ids, context_end, protocol, first_token)
    # a query-aware prefill of the whole prompt is the only one that ends with it
    fed = int(first_token == "compressed" or protocol == "query_agnostic")
    if first_end is None:
        return [Part(whole, None, tuple(range(len(methods))), None, fed)]
    kept = split_prompt(ids, context_end, protocol, first_token, first_end)
    # the only token of a turn may not be compressed: then the one before it observes
    turn = max(1, len(whole.compressed) - (turn_start or first_end))
    filtering = [method.on_turn == "filter" for method in methods]
    parts = [
        Part(split, len(kept.compressed), tuple(n for n, f in enumerate(filtering) if f == filters), own, fed)
        for split, filters, own in ((kept, False, None), (whole, True, turn))
    ]
    return [part for part in parts if part.cells]
