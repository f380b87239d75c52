"""One needle at every depth of every length."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from kvbench.config.errors import UserError
from kvbench.tasks import haystack as hay
from kvbench.tasks.base import register, stream
from kvbench.tasks.length import fit
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.ruler import Ruler
from kvbench.tasks.wording import Part
from kvbench.tasks.words import draw


@register("needle_grid")
@dataclass(frozen=True, kw_only=True)
class NeedleGrid(Ruler):
    """One needle (a word's number) at every depth of every length, for the heat map; samples = depths x repetitions.

    Sample i has depth number i modulo the number of depths. The sample's meta holds the depth, in percent of the
    filler's characters.

    Attributes:
        depths: in percent; 0 is the start of the filler and 100 its end.
        haystack: "noise" (one line, repeated), "prose" or "essay".
        essay: the file for haystack=essay.
    """

    paths: ClassVar[tuple[str, ...]] = ("essay",)

    depths: tuple[float, ...] = (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)
    haystack: Literal["noise", "prose", "essay"] = "prose"
    essay: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.depths or min(self.depths) < 0 or max(self.depths) > 100:
            raise UserError(f"depths: {list(self.depths)} is not allowed, give percentages from 0 to 100")
        if len(set(self.depths)) < len(self.depths):
            raise UserError(f"depths: {list(self.depths)} is not allowed, give each only once")
        hay.check(self.haystack, self.essay)

    @property
    def part(self) -> Part:
        return "niah_one"

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        rng = stream("needle_grid", seed, index)
        depth = self.depths[index % len(self.depths)]
        key, value = draw(rng, "words"), draw(rng, "numbers")
        needle = self.sentences.needle.format(many="numbers", key=key, value=value)
        if self.haystack == "noise":
            filler = hay.noise(self.sentences.noise)
        else:
            filler = hay.text(self.haystack, self.essay, rng)
        meta = {"depth": depth, "haystack": filler.kind}

        def build(units: int) -> Sample:
            context = filler.hide_at(needle, units, depth)
            return self.ask(context, (value,), meta, one="number", many="numbers", query=key)

        return fit(build, renderer, length)
