"""Cuts a whole prompt in the middle, as LongBench does (THUDM/LongBench, LongBench/pred.py)."""

from __future__ import annotations

from dataclasses import replace

from kvbench.config.errors import UserError
from kvbench.tasks.prompt import Renderer, Sample


def cut_middle(sample: Sample, max_length: int, renderer: Renderer) -> Sample:
    """The sample, its message cut to its first and last `max_length // 2` tokens.

    Tokens are those of the message before the chat template, with the special ones that the tokenizer adds. Both ends
    are decoded by themselves and joined; the result may have a few tokens more or fewer. The context then ends before
    the question, if the end that is kept holds all of it.

    Args:
        sample: without earlier turns.
        max_length: tokens, 2 or more.
        renderer: its tokenizer.
    """
    tokenizer = renderer.tokenizer
    ids = tokenizer(sample.context + sample.question, verbose=False)["input_ids"]
    if len(ids) <= max_length:
        return sample
    half = max_length // 2
    head, tail = (
        str(tokenizer.decode(part, skip_special_tokens=True)) for part in (ids[:half], ids[len(ids) - half :])
    )
    known = sample.context_known and bool(sample.question) and tail.endswith(sample.question)
    context = head + (tail[: -len(sample.question)] if known else tail)
    return replace(
        sample,
        context=context,
        question=sample.question if known else "",
        context_known=known,
        meta={**sample.meta, "cut_tokens": len(ids) - 2 * half},
    )


def fit_middle(sample: Sample, max_length: int | None, renderer: Renderer, place: str) -> Sample:
    """The sample cut to `max_length`, or where that is None to what the model takes.

    Args:
        sample: without earlier turns.
        max_length: see `cut_middle`.
        renderer: knows the model's limit.
        place: names the row, for messages.

    Raises:
        UserError: `max_length` is too much for the model, or the model too small for the answer.
    """
    if max_length is not None:
        cut = cut_middle(sample, max_length, renderer)
        tokens = renderer.count(cut) + sample.max_new_tokens
        if renderer.limit is not None and tokens > renderer.limit:
            raise UserError(
                f"max_length: {max_length} is too much, {place} has {tokens} tokens with template and answer and the "
                f"model takes {renderer.limit}; give less, or null for what the model takes"
            )
        return cut
    if renderer.limit is None:
        return sample
    room = renderer.limit - sample.max_new_tokens
    if renderer.count(sample) <= room:
        return sample
    length, cut = room, cut_middle(sample, max(room, 2), renderer)
    # the template takes tokens too, and those at the cut may merge differently
    while (excess := renderer.count(cut) - room) > 0:
        length -= excess
        if length < 2:
            raise UserError(
                f"max_new_tokens: {sample.max_new_tokens} leave no room for {place}, the model takes {renderer.limit}"
            )
        cut = cut_middle(sample, length, renderer)
    return cut
