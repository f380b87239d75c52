"""Needles in a haystack: RULER's eight needle tasks are settings of this family."""

import random
from dataclasses import dataclass
from typing import ClassVar

from kvbench.errors import UserError
from kvbench.tasks import haystack as hay
from kvbench.tasks.base import register, stream
from kvbench.tasks.length import fit
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.ruler import Ruler
from kvbench.tasks.wording import Part
from kvbench.tasks.words import WordKind, draw_new


@register("niah")
@dataclass(frozen=True, kw_only=True)
class Niah(Ruler):
    """Key-value sentences hidden in filler; the question names keys, the answer is their values.

    After NVIDIA/RULER, scripts/data/synthetic/niah.py. Where RULER fills with Paul Graham's essays, which are
    not distributed here, the default is prose of our own; `haystack=essay essay=FILE` takes a file instead.
    Either way the kind of haystack stands in the sample's meta, a file by its hash.

    Attributes:
        haystack: "noise" (one line over and over), "needles" (sentences like the needle), "prose" or "essay".
        essay: the file for haystack=essay.
        keys: number of keys that are hidden.
        values: number of values of each key.
        queries: number of keys that are asked for.
        key_type: what keys are: "words", "numbers" or "uuids".
        value_type: what values are, likewise.
    """

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
        for name, most in (("keys", 40), ("values", 40 // max(self.keys, 1)), ("queries", self.keys)):
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name}: {getattr(self, name)} is not allowed, give 1 to {most}")
        hay.check(self.haystack, self.essay)

    @property
    def part(self) -> Part:
        return "niah_one" if self.queries * self.values == 1 else "niah_many"

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        rng = stream("niah", seed, index)
        used: set[str] = set()
        hidden: dict[str, list[str]] = {}
        for _ in range(self.keys):
            key = draw_new(rng, self.key_type, used)
            hidden[key] = [draw_new(rng, self.value_type, used) for _ in range(self.values)]
        asked = rng.sample(list(hidden), self.queries)
        gold = tuple(value for key in asked for value in hidden[key])
        needles = [self._needle(key, value) for key, values in hidden.items() for value in values]
        rng.shuffle(needles)
        filler = self._filler(rng, used)
        fill = {
            "one": self.value_type.removesuffix("s"),
            "many": self.value_type,
            "query": ", and ".join(filter(None, (", ".join(asked[:-1]), asked[-1]))),
        }

        def build(units: int) -> Sample:
            context = filler.hide(needles, units, stream("niah places", seed, index))
            return self.ask(context, gold, {"haystack": filler.kind}, **fill)

        return fit(build, renderer, length, smallest=len(needles))

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
