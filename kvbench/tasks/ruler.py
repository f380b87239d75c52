"""Base of the RULER families: sentences, answer prefix, scoring rule."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kvbench.config.errors import UserError
from kvbench.tasks.base import Family
from kvbench.tasks.prompt import Sample
from kvbench.tasks.scorers import substring_all
from kvbench.tasks.wording import Part, Sentences, Wording, sentences_for


@dataclass(frozen=True, kw_only=True)
class Ruler(Family):
    """Base of the families after RULER (Hsieh et al., 2024, arXiv:2404.06654; github.com/NVIDIA/RULER).

    Attributes:
        wording: "own", our sentences of the same form, or "ruler", RULER's, read from the installed lm-eval
            (pip install --no-deps lm-eval).
        prefix_space: whether the answer prefix starts with a space, as in NVIDIA's templates; lm-eval drops it.
    """

    source: ClassVar[str] = "RULER, github.com/NVIDIA/RULER"
    licence: ClassVar[str] = "Apache-2.0 (sentences, from lm-eval)"
    scored: ClassVar[str] = "share of the answers that the output holds"

    wording: Wording = "own"
    prefix_space: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.length) < 1:
            raise UserError(f"length: {list(self.length)} is not allowed, give positive numbers of tokens")

    @property
    def metric(self) -> str:
        return "string_match_all"

    @property
    @abstractmethod
    def part(self) -> Part:
        """The sentences of the family."""

    @property
    def sentences(self) -> Sentences:
        return sentences_for(self.wording, self.part)

    def score(self, output: str, sample: Sample) -> float:
        return substring_all(output, sample.gold)

    def ask(
        self,
        haystack: str,
        gold: tuple[str, ...],
        meta: Mapping[str, Any],
        example: str = "",
        **values: object,
    ) -> Sample:
        """A sample: the solved example, then the haystack between the sentences; `values` fill placeholders."""
        sentences = self.sentences
        prefix = sentences.prefix.format(**values)
        return Sample(
            context=example + sentences.head.format(**values) + haystack,
            question=sentences.question.format(**values),
            answer_prefix=f" {prefix}" if self.prefix_space else prefix,
            gold=gold,
            max_new_tokens=self.max_new_tokens,
            meta=meta,
        )


def solved(sample: Sample, answer: str) -> str:
    """The text of a sample with its answer, for an example."""
    return f"{sample.context}{sample.question} {sample.answer_prefix.strip()} {answer}"
