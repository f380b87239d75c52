"""A conversation about needles in a haystack, with one key per turn."""

from dataclasses import dataclass, replace
from typing import ClassVar

from kvbench.config.errors import UserError
from kvbench.tasks.base import register
from kvbench.tasks.length import fit
from kvbench.tasks.niah import Niah
from kvbench.tasks.prompt import Renderer, Sample, Turn


@register("niah_turns")
@dataclass(frozen=True, kw_only=True)
class NiahTurns(Niah):
    """RULER's multi-key needles as a conversation: each turn asks for another key.

    A sample is one turn: samples 0 to turns - 1 are the turns of the first conversation, and so on, all with the same
    haystack. Earlier turns hold the gold answers, as in SCBench (Li et al., 2024, arXiv 2412.10319), not the method's,
    so that all methods see the same prompts. Turns of one conversation are not independent samples. The last turn meets
    the length.

    Attributes:
        turns: questions per conversation, at most as many as keys.
    """

    is_task: ClassVar[bool] = True

    keys: int = 4
    turns: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.turns <= self.keys:
            raise UserError(f"turns: {self.turns} is not allowed, give 1 to keys ({self.keys})")
        for name in ("values", "queries"):
            if getattr(self, name) != 1:
                raise UserError(
                    f"{name}: {getattr(self, name)} is not allowed, every turn asks for one value"
                )

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        conversation, turn = divmod(index, self.turns)
        puzzle = self.puzzle(conversation, seed, self.turns)

        def build(units: int) -> Sample:
            *before, last = (self.question(puzzle, [key], units) for key in puzzle.queried)
            earlier = tuple(Turn(q.question, q.answer_prefix, q.gold[0]) for q in before)
            return replace(last, earlier=earlier)

        last = fit(build, renderer, length, len(puzzle.needles))
        now = (*last.earlier, Turn(last.question, last.answer_prefix, last.gold[0]))[turn]
        return replace(
            last,
            question=now.question,
            answer_prefix=now.answer_prefix,
            gold=(now.answer,),
            earlier=last.earlier[:turn],
            meta={**last.meta, "conversation": conversation, "turn": turn},
        )
