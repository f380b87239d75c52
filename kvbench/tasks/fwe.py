"""Frequent words: RULER's code words whose frequencies follow a power law."""

import string
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from kvbench.config.errors import UserError
from kvbench.tasks.base import register, stream
from kvbench.tasks.length import fit
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.ruler import Ruler
from kvbench.tasks.wording import Part

LETTERS = 6
STEEPEST = 10


@register("fwe")
@dataclass(frozen=True, kw_only=True)
class FrequentWords(Ruler):
    """Code words of six letters, the k-th with frequency k ** -alpha; the answer is the three most frequent.

    After NVIDIA/RULER, scripts/data/synthetic/freq_words_extraction.py: one code word per 50 tokens, and dots
    in place of the most frequent one.

    Attributes:
        alpha: exponent of the power law, above 1; from 10 on a million dots would stand for one third word.
    """

    is_task: ClassVar[bool] = False

    max_new_tokens: int = 50
    alpha: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.alpha <= STEEPEST:
            raise UserError(f"alpha: {self.alpha} is not allowed, give a number above 1 and up to {STEEPEST}")

    @property
    def part(self) -> Part:
        return "fwe"

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        rng = stream("fwe", seed, index)
        size = max((length - self.max_new_tokens) // 50, 5)
        vocabulary: dict[str, None] = {"...": None}
        while len(vocabulary) < size:
            vocabulary["".join(rng.choices(string.ascii_lowercase, k=LETTERS))] = None
        words = list(vocabulary)

        def build(scale: int) -> Sample:
            times = (int(scale * k**-self.alpha) for k in range(1, len(words) + 1))
            items = [word for word, count in zip(words, times, strict=True) for _ in range(count)]
            stream("fwe order", seed, index).shuffle(items)
            return self.ask(" ".join(items), tuple(words[1:4]), {"haystack": "code words"})

        # from this scale on the third answer is always more frequent than the next word
        smallest = ceil(1 / (4**-self.alpha - 5**-self.alpha))
        if smallest > length:
            raise UserError(
                f"length: {length} is too short, with alpha={self.alpha:g} this task needs {smallest:,} tokens or more"
            )
        return fit(build, renderer, length, smallest)
