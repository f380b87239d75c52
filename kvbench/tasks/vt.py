"""Variable tracking: RULER's chains of assignments hidden in noise."""

import random
import string
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from kvbench.config.errors import UserError
from kvbench.tasks import haystack as hay
from kvbench.tasks.base import register, stream
from kvbench.tasks.length import fit, largest_fitting
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.ruler import Ruler, solved
from kvbench.tasks.wording import Part

EXAMPLE_TOKENS = 500


@register("vt")
@dataclass(frozen=True, kw_only=True)
class VariableTracking(Ruler):
    """Chains of assignments hidden in noise; the answer is every variable that ends up with a chain's value.

    After NVIDIA/RULER, scripts/data/synthetic/variable_tracking.py. One solved example with shorter names comes first;
    it uses up to 500 tokens as in RULER, but about a quarter of short lengths.

    Attributes:
        chains: number of chains; the question is about the first one.
        hops: assignments of a chain after its first.
    """

    is_task: ClassVar[bool] = False

    max_new_tokens: int = 30
    chains: int = 1
    hops: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chains", "hops"):
            if not 1 <= getattr(self, name) <= 100:
                raise UserError(f"{name}: {getattr(self, name)} is not allowed, give 1 to 100")

    @property
    def part(self) -> Part:
        return "vt"

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        example = self._example(index, seed, length, renderer)

        def build(units: int) -> Sample:
            return self._puzzle(stream("vt", seed, index), units, letters=5, example=example)

        return fit(build, renderer, length, smallest=self.hops + 1)

    def _example(self, index: int, seed: int, length: int, renderer: Renderer) -> str:
        def build(units: int) -> str:
            puzzle = self._puzzle(stream("vt example", seed, index), units, letters=3)
            return solved(puzzle, " ".join(puzzle.gold)) + "\n\n"

        room = min(EXAMPLE_TOKENS, length // 4)
        units, _ = largest_fitting(lambda n: len(renderer.offsets(build(n))), room, smallest=self.hops + 1)
        return build(units)

    def _puzzle(self, rng: random.Random, units: int, letters: int, example: str = "") -> Sample:
        names = _names(rng, letters, self.chains * (self.hops + 1))
        numbers = rng.sample(range(10_000, 100_000), self.chains)
        chains = [names[i :: self.chains] for i in range(self.chains)]
        lines = [self.sentences.noise] * units
        for chain, number in zip(chains, numbers, strict=True):
            places = sorted(rng.sample(range(len(lines)), len(chain)))
            lines = hay.insert(lines, _assignments(chain, number), places)
        fill = {"query": numbers[0], "num_v": self.hops + 1}
        return self.ask("\n".join(lines), tuple(chains[0]), {"haystack": "noise"}, example, **fill)


def _names(rng: random.Random, letters: int, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
    return list(names)


def _assignments(chain: list[str], number: int) -> list[str]:
    # the space at the end of a hop is RULER's
    hops = [f"VAR {new} = VAR {old} " for old, new in pairwise(chain)]
    return [f"VAR {chain[0]} = {number}", *hops]
