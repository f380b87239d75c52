"""Needles in a haystack: RULER's eight needle tasks are settings of this family."""

import random
from dataclasses import dataclass
from typing import ClassVar

from kvbench.config.errors import UserError
from kvbench.tasks import haystack as hay
from kvbench.tasks.base import register, stream
from kvbench.tasks.length import fit
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.ruler import Ruler
from kvbench.tasks.wording import Part
from kvbench.tasks.words import WordKind, draw_new


@dataclass(frozen=True)
class Puzzle:
    """The hidden keys and values of a sample.

    Attributes:
        index: index of the sample.
        seed: seed of the samples.
        hidden: values by key.
        queried: keys that the question names.
        needles: sentences in the order of their places.
        filler: the haystack.
    """

    index: int
    seed: int
    hidden: dict[str, list[str]]
    queried: list[str]
    needles: list[str]
    filler: hay.Haystack


@register("niah")
@dataclass(frozen=True, kw_only=True)
class Niah(Ruler):
    """Key-value sentences hidden in filler; the question names keys, the answer is their values.

    After NVIDIA/RULER, scripts/data/synthetic/niah.py. RULER fills with Paul Graham's essays, which are not distributed
    here; `haystack=prose` uses generated prose instead, and `haystack=essay essay=FILE` a file. The sample's meta holds
    the kind of haystack, a file by its hash.

    Attributes:
        haystack: "noise" (one line, repeated), "needles" (sentences like the needle), "prose" or "essay".
        essay: the file for haystack=essay.
        keys: number of hidden keys.
        values: number of values per key.
        queries: number of keys in the question.
        key_type: "words", "numbers" or "uuids".
        value_type: likewise.
    """

    is_task: ClassVar[bool] = False
    paths: ClassVar[tuple[str, ...]] = ("essay",)

    haystack: hay.HaystackKind = "noise"
    essay: str | None = None
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_type: WordKind = "words"
    value_type: WordKind = "numbers"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, limit in (("keys", 40), ("values", 40 // max(self.keys, 1)), ("queries", self.keys)):
            if not 1 <= getattr(self, name) <= limit:
                raise UserError(f"{name}: {getattr(self, name)} is not allowed, give 1 to {limit}")
        hay.check(self.haystack, self.essay)

    @property
    def part(self) -> Part:
        return "niah_one" if self.queries * self.values == 1 else "niah_many"

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        puzzle = self.puzzle(index, seed, self.queries)
        return fit(
            lambda units: self.question(puzzle, puzzle.queried, units), renderer, length, len(puzzle.needles)
        )

    def puzzle(self, index: int, seed: int, queries: int) -> Puzzle:
        """Draw keys, values, filler, and the keys of the question."""
        rng = stream("niah", seed, index)
        used: set[str] = set()
        hidden: dict[str, list[str]] = {}
        for _ in range(self.keys):
            key = draw_new(rng, self.key_type, used)
            hidden[key] = [draw_new(rng, self.value_type, used) for _ in range(self.values)]
        keys = rng.sample(list(hidden), queries)
        needles = [self._needle(key, value) for key, values in hidden.items() for value in values]
        rng.shuffle(needles)
        return Puzzle(index, seed, hidden, keys, needles, self._filler(rng, used))

    def question(self, puzzle: Puzzle, keys: list[str], units: int) -> Sample:
        """A question about the values of `keys`, in a haystack of `units`."""
        places = stream("niah places", puzzle.seed, puzzle.index)
        context = puzzle.filler.hide(puzzle.needles, units, places)
        gold = tuple(value for key in keys for value in puzzle.hidden[key])
        fill = {
            "one": self.value_type.removesuffix("s"),
            "many": self.value_type,
            "query": ", and ".join(filter(None, (", ".join(keys[:-1]), keys[-1]))),
        }
        return self.ask(context, gold, {"haystack": puzzle.filler.kind}, **fill)

    def _needle(self, key: str, value: str) -> str:
        return self.sentences.needle.format(many=self.value_type, key=key, value=value)

    def _filler(self, rng: random.Random, used: set[str]) -> hay.Haystack:
        if self.haystack == "noise":
            return hay.noise(self.sentences.noise)
        if self.haystack == "needles":
            return hay.needles(
                lambda: self._needle(draw_new(rng, self.key_type, used), draw_new(rng, self.value_type, used))
            )
        return hay.text(self.haystack, self.essay, rng)
