"""Exact lengths: the haystack is as large as the requested number of tokens allows."""

from collections.abc import Callable

from kvbench.config.errors import UserError
from kvbench.tasks.prompt import Renderer, Sample

SHORTEST = 0.9


def fit(
    build: Callable[[int], Sample],
    renderer: Renderer,
    length: int,
    smallest: int = 1,
    largest: int | None = None,
) -> Sample:
    """Finds the largest haystack whose rendered prompt and answer fit into `length` tokens.

    Args:
        build: makes the sample with a haystack of so many units; more units must mean more tokens.
        renderer: counts with the model's own tokenizer, template included.
        length: prompt tokens + max_new_tokens that are asked for.
        smallest: fewest units that make a sample.
        largest: most units there are, None for no end.

    Raises:
        UserError: the length is too short, or not met within 90 and 100 %.
    """
    answer = build(smallest).max_new_tokens
    units, tokens = largest_fitting(lambda n: renderer.count(build(n)), length - answer, smallest, largest)
    if tokens + answer > length:
        raise UserError(f"length: {length} is too short, this task needs {tokens + answer} tokens or more")
    if tokens + answer < SHORTEST * length:
        raise UserError(
            f"length: {length} cannot be met, the closest is {tokens + answer} tokens and at least "
            f"{SHORTEST:.0%} are needed"
        )
    return build(units)


def largest_fitting(
    count: Callable[[int], int], room: int, smallest: int, largest: int | None = None
) -> tuple[int, int]:
    """Largest number of units that count to at most `room` tokens, or `smallest`; and their tokens.

    Counts are almost linear in the units, so the bisection aims by interpolation: a handful of counts.
    """
    low, low_tokens = smallest, count(smallest)
    if low_tokens > room:
        return low, low_tokens
    step = 16
    while True:
        high = low + step if largest is None else min(low + step, largest)
        if high == low:
            return low, low_tokens
        high_tokens = count(high)
        if high_tokens > room:
            break
        per_unit = max(high_tokens - low_tokens, 1) / (high - low)
        low, low_tokens = high, high_tokens
        step = int((room - low_tokens) / per_unit) + 1
    while high - low > 1:
        share = (room - low_tokens) / (high_tokens - low_tokens)
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        tokens = count(middle)
        if tokens > room:
            high, high_tokens = middle, tokens
        else:
            low, low_tokens = middle, tokens
    return low, low_tokens
