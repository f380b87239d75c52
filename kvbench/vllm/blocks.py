"""Why a shared prefix is not found: vLLM caches whole blocks, so that what is shorter than a block never is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from kvbench.runs.store import Record


def shared_prefix(prompts: Iterable[Sequence[int]]) -> int:
    """Tokens of the longest prefix that two of these prompts have in common; 0 for fewer than two.

    Args:
        prompts: token ids, each [T].
    """
    # neighbours in lexical order have the longest prefix in common
    ordered = sorted(map(tuple, prompts))
    return max((_common(*pair) for pair in itertools.pairwise(ordered)), default=0)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def too_short(prefix: int, block: int) -> str:
    """The line on a shared prefix that is shorter than a block."""
    return (
        f"A shared prefix of {prefix} tokens is shorter than a block of {block}: nothing of it can be found."
    )


def short_prefix(rows: Iterable[Record]) -> list[str]:
    """One line if what the prompts of some rows share is shorter than a block; rows of before say nothing.

    Args:
        rows: with `shared_prefix` and `block`, each null where it is not known.
    """
    known = {(row.get("shared_prefix"), row.get("block")) for row in rows}
    short = [(prefix, block) for prefix, block in known if prefix and block and prefix < block]
    return [too_short(*max(short))] if short else []
