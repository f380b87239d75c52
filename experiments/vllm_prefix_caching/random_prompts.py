"""Prompts of random tokens that share exactly their prefix, and the cache hits they should have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

# the vocabulary of the prompts is the set of its tokens
TEXT = (
    "The harbour was quiet before dawn. Three boats came in with the tide, and the men who had waited on the stone"
    " steps since midnight took the ropes without a word. Further up the hill a window opened; somebody shook a"
    " yellow cloth and looked for a long time at the grey water, as if counting what was missing there."
)


@dataclass
class RandomPrompts:
    """Prompts of random tokens from a small English vocabulary; the answers to them are meaningless."""

    vocabulary: Sequence[int]
    seed: int

    def prefix(self, name: str, tokens: int) -> list[int]:
        """The prefix that the requests of a case share."""
        return random.Random(f"{self.seed}/{name}").choices(self.vocabulary, k=tokens)

    def suffix(self, number: int, tokens: int) -> list[int]:
        """The suffix of a request: no two begin with the same token, so that requests share exactly the prefix."""
        rest = random.Random(f"{self.seed}/suffix/{number}").choices(self.vocabulary, k=tokens - 1)
        return [self.vocabulary[number], *rest]


def predicted_hits(prefix: int, suffix: int, block: int) -> int:
    """Tokens of a cached prefix that a request hits: whole blocks, and never the prompt's last token."""
    return min(prefix, prefix + suffix - 1) // block * block
