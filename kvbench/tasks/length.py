"""Prompts of a requested length: the largest haystack that fits."""

from collections.abc import Callable

from kvbench.config.errors import UserError
from kvbench.tasks.prompt import Renderer, Sample

SHORTEST = 0.9
FIRST_STEP = 16


def fit(
    build: Callable[[int], Sample],
    renderer: Renderer,
    length: int,
    smallest: int = 1,
    largest: int | None = None,
) -> Sample:
    """The sample with the largest haystack whose rendered prompt and answer fit into `length` tokens.

    Args:
        build: makes the sample with a haystack of n units; more units must mean more tokens.
        renderer: counts tokens with the model's tokenizer and chat template.
        length: requested prompt tokens + max_new_tokens.
        smallest: minimum number of units.
        largest: maximum number of units, None for no limit.

    Raises:
        UserError: the length is too short, or cannot be met between 90 and 100 %.
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
    """The largest number of units with at most `room` tokens, or `smallest`; and its number of tokens.

    Tokens are almost linear in the units, so an interpolating bisection needs only a few counts.

    Raises:
        UserError: more units have no more tokens, as with a tokenizer that knows no word of them.
    """
    low, low_tokens = smallest, count(smallest)
    if low_tokens > room:
        return low, low_tokens
    step = FIRST_STEP
    while True:
        high = low + step if largest is None else min(low + step, largest)
        if high == low:
            return low, low_tokens
        high_tokens = count(high)
        if high_tokens > room:
            break
        if high_tokens <= low_tokens and high - low >= FIRST_STEP:
            raise UserError(
                f"length: more text has no more tokens with this tokenizer, {low_tokens} is all that it gives"
            )
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
