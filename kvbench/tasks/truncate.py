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


def cut_context(sample: Sample, max_length: int | None, renderer: Renderer, place: str) -> Sample:
    """The sample, its first prompt cut to its first and last `max_length // 2` tokens, template and question included.

    The middle of the context goes, so that its end stays known. The official code of SCBench cuts token ids; here the
    text is cut between the same tokens, and a few around the cut may merge differently.

    Args:
        sample: may have earlier turns, which are not counted.
        max_length: tokens of the first prompt; None for what the model takes, later turns and answer included.
        renderer: knows the model's limit.
        place: names the row, for messages.

    Raises:
        UserError: the context does not fill the middle, or the model is too small.
    """
    first = (
        replace(sample, question=sample.earlier[0].question, earlier=(), answer_prefix="")
        if sample.earlier
        else sample
    )
    limit, whole = renderer.limit, renderer.count(sample) + sample.max_new_tokens
    length = max_length
    if length is None:
        if limit is None or whole <= limit:
            return sample
        length = renderer.count(first) - (whole - limit)
    cut = _without_middle(sample, first, length, renderer, place)
    # tokens at the cut may merge differently
    while max_length is None and (excess := renderer.count(cut) + sample.max_new_tokens - (limit or 0)) > 0:
        length -= excess + 1
        cut = _without_middle(sample, first, length, renderer, place)
    tokens = renderer.count(cut) + sample.max_new_tokens
    if limit is not None and tokens > limit:
        raise UserError(
            f"max_length: {max_length} is too much, {place} has {tokens} tokens with later turns and answer and the "
            f"model takes {limit}; give less, or null for what the model takes"
        )
    return cut


def _without_middle(sample: Sample, first: Sample, length: int, renderer: Renderer, place: str) -> Sample:
    prompt = renderer.render(first)
    count = len(prompt.ids)
    if count <= length:
        return sample
    half, spans = length // 2, renderer.spans(prompt)
    message = first.context + first.question
    start = prompt.text.rfind(message.strip()) - (len(message) - len(message.lstrip()))
    low, high = (spans[half - 1][1] - start, spans[count - half][0] - start) if half > 0 else (-1, -1)
    if not 0 <= low <= high <= len(first.context):
        raise UserError(
            f"max_length: {length} tokens for the first prompt of {place} leave no room for its question"
        )
    context = first.context[:low] + first.context[high:]
    return replace(sample, context=context, meta={**sample.meta, "cut_tokens": count - 2 * half})
