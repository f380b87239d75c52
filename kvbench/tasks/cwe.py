"""Common words: RULER's numbered list in which ten words are more frequent than the others."""

import random
from dataclasses import dataclass
from typing import ClassVar

from kvbench.tasks.base import register, stream
from kvbench.tasks.length import fit
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.ruler import Ruler, solved
from kvbench.tasks.wording import Part
from kvbench.tasks.words import all_words

COMMON = 10


@register("cwe")
@dataclass(frozen=True, kw_only=True)
class CommonWords(Ruler):
    """A numbered list of words; the answer is the ten most frequent ones.

    After NVIDIA/RULER, scripts/data/synthetic/common_words_extraction.py, with its frequencies: a common
    word occurs 30 times and another 3 times, or 6 and 1 below 4096 tokens. One solved example comes first, of 40 words
    (10 and 3 times) or 20 (3 and 1). It is part of the same message; in RULER it is a separate turn.
    """

    is_task: ClassVar[bool] = False

    max_new_tokens: int = 120

    @property
    def part(self) -> Part:
        return "cwe"

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        rng = stream("cwe", seed, index)
        words = rng.sample(all_words(), len(all_words()))
        solved_words = rng.sample(all_words(), 20 if length < 4096 else 40)
        often, seldom = (3, 1) if length < 4096 else (10, 3)
        listed = " ".join(f"{i}. {word}" for i, word in enumerate(solved_words[:COMMON], start=1))
        example = solved(self._question(solved_words, often, seldom, rng), listed) + "\n"
        often, seldom = (6, 1) if length < 4096 else (30, 3)

        def build(units: int) -> Sample:
            return self._question(words[:units], often, seldom, stream("cwe order", seed, index), example)

        return fit(build, renderer, length, smallest=COMMON + 1, largest=len(words))

    def _question(
        self, words: list[str], often: int, seldom: int, rng: random.Random, example: str = ""
    ) -> Sample:
        items = [*words[:COMMON] * often, *words[COMMON:] * seldom]
        rng.shuffle(items)
        context = " ".join(f"{i}. {word}" for i, word in enumerate(items, start=1))
        return self.ask(context, tuple(words[:COMMON]), {"haystack": "words"}, example)
