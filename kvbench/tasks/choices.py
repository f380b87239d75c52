"""Questions with given options, answered by the likeliest one behind the compressed prompt."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from kvbench.config.errors import UserError
from kvbench.tasks import made_up
from kvbench.tasks.base import register
from kvbench.tasks.dataset import DataSet
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.rows import TEXT, WHOLE, Hub, Kind

_OPTIONS: Kind = (
    "a list of two texts or more, all different",
    lambda value: (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(item, str) and item.strip() for item in value)
        and len(set(value)) == len(value)
    ),
)


@register("choices")
@dataclass(frozen=True, kw_only=True)
class Choices(DataSet):
    """Your own questions with options: rows {context, question, choices, answer}, `answer` the number of the right one.

    Every option is fed behind the compressed prompt as decode steps; the one with the largest sum of log probabilities
    is the answer. `acc_norm` divides the sums by characters, `margin` is the right one's sum less the best other's, in
    nats.
    A prompt is the context, an empty line and the question, the option stands behind a blank.
    """

    source: ClassVar[str] = "own"
    lengths: ClassVar[str] = "of the file"
    scored: ClassVar[str] = "the likeliest option, by sums of log probabilities"
    needs: ClassVar[str] = "data=FILE; kvbench data choices writes one to start from"
    home: ClassVar[str] = "your own questions"
    fields: ClassVar[Mapping[str, Kind]] = {
        "context": TEXT,
        "question": TEXT,
        "choices": _OPTIONS,
        "answer": WHOLE,
    }

    @property
    def metric(self) -> str:
        return "acc"

    @property
    def data_name(self) -> str:
        return "choices"

    @property
    def hub(self) -> Hub:
        return Hub("choices")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.download:
            raise UserError("download: your own questions are in no data set of the hub, give data=FILE")

    def defect(self, row: Mapping[str, Any]) -> str | None:
        if not 0 <= row["answer"] < len(row["choices"]):
            return (
                f"answer must be the number of a choice, 0 to {len(row['choices']) - 1}, not {row['answer']}"
            )
        return None

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        row = self.rows.rows[index]
        # behind a template's head an answer begins without a blank, behind text with one
        before = "" if renderer.chat_template is not None else " "
        texts = tuple(before + text.strip() for text in row["choices"])
        sample = Sample(
            row["context"], f"\n\n{row['question'].rstrip()}", "", (row["choices"][row["answer"]],), 1,
            {"row": index}, continuations=texts,
        )  # fmt: skip
        prompt = renderer.render(sample)
        longest = max(len(renderer.continuation(prompt, text)) for text in texts)
        return replace(sample, max_new_tokens=longest)

    def score(self, output: str, sample: Sample) -> float:
        raise NotImplementedError

    def judged(
        self, log_probs: Sequence[Sequence[float]], sample: Sample
    ) -> tuple[str, dict[str, float | list[float]]]:
        right = self.rows.rows[sample.meta["row"]]["answer"]
        sums = [math.fsum(values) for values in log_probs]
        lengths = [len(text) for text in sample.continuations]
        best = max(range(len(sums)), key=sums.__getitem__)
        normed = max(range(len(sums)), key=lambda n: sums[n] / lengths[n])
        margin = sums[right] - max(value for n, value in enumerate(sums) if n != right)
        found: dict[str, float | list[float]] = {
            "acc": float(best == right), "acc_norm": float(normed == right), "margin": margin,
        }  # fmt: skip
        return sample.continuations[best].strip(), found

    def examples(self, count: int, words: int) -> Sequence[Mapping[str, Any]]:
        found = []
        for index in range(count):
            rng = random.Random(f"choices/{index}")
            fact = made_up.fact(rng, words)
            options = [fact.value, *(str(rng.randrange(10**6, 10**7)) for _ in range(3))]
            rng.shuffle(options)
            found.append(
                {
                    "context": fact.text,
                    "question": fact.question,
                    "choices": options,
                    "answer": options.index(fact.value),
                }
            )
        return found
