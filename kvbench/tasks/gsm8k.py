"""GSM8K with many solved examples in the prompt: 8 by lm-eval's text, or more from the training rows."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar

from kvbench.config.errors import UserError
from kvbench.tasks.base import register, stream
from kvbench.tasks.dataset import DataSet
from kvbench.tasks.lm_eval_files import changed, task_file
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.rows import TEXT, Hub, Kind, Rows, download, read
from kvbench.tasks.stop import Stop

_FILE = "gsm8k/gsm8k-cot.yaml"
#: first digits of the SHA-256 of the eight examples and the form of a question, as JSON
_WORDING = "dddeb21f5d48a2c0"
_CLOSING = " The answer is {}."
_MARK = re.compile(r"<<[^<>]*>>")
# the official filters and what both sides lose before they are compared as text (lm-eval 0.4.13, gsm8k-cot.yaml)
_STRICT = re.compile(r"The answer is (\-?[0-9\.\,]+).")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_LOST = tuple(map(re.compile, (",", r"\$", r"(?s).*#### ", r"\.$")))


@register("gsm8k_shots")
@dataclass(frozen=True, kw_only=True)
class Gsm8kShots(DataSet):
    """GSM8K (Cobbe et al., 2021, arXiv:2110.14168), with solved examples before each question.

    The first eight examples are those of Wei et al. (2022), read from the installed lm-eval (gsm8k_cot), which a hash
    proves. Further ones are training rows without calculator marks, `#### 18` turned into the closing sentence of the
    eight. All questions have the same examples in the same order, the context of query_agnostic. `flexible` compares
    the last number of an answer, `strict` the one after the closing sentence; both as text, as lm-eval does.

    Attributes:
        shots: examples; more than eight need `train`, or download=true.
        train: a file of training rows, or a folder that holds one named train; the first ones are taken.
        draw: seed of a draw of the training rows; None for the first ones.
    """

    paths: ClassVar[tuple[str, ...]] = ("data", "download", "train")
    source: ClassVar[str] = "GSM8K, github.com/openai/grade-school-math"
    licence: ClassVar[str] = "MIT"
    lengths: ClassVar[str] = "1K tokens (8 shots), 6K (50)"
    scored: ClassVar[str] = "lm-eval's flexible and strict exact match"
    needs: ClassVar[str] = "test rows of openai/gsm8k on the hub: data=FILE, or download=true"
    home: ClassVar[str] = "GSM8K, openai/gsm8k on the Hugging Face hub"
    fields: ClassVar[Mapping[str, Kind]] = {"question": TEXT, "answer": TEXT}

    shots: int = 8
    train: str | None = None
    draw: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots < 0:
            raise UserError(f"shots: {self.shots} is not allowed, give 0 or more")
        if self.shots > 8 and self.train is None and not self.download:
            raise UserError(
                f"train: {self.shots} shots need training rows of {self.home}: train=train.jsonl, or download=true"
            )
        if self.shots <= 8 and (self.train is not None or self.draw is not None):
            raise UserError("train: training rows and their draw are for more than 8 shots")

    @property
    def metric(self) -> str:
        return "flexible"

    @property
    def typical(self) -> tuple[int, int, int]:
        # 110 tokens of an example, 100 of a question with the template
        return 1319, 110 * self.shots + 100, self.max_new_tokens or 256

    @property
    def wording(self) -> str:
        return "lm-eval gsm8k_cot"

    @property
    def data_name(self) -> str:
        return "test"

    @property
    def hub(self) -> Hub:
        return Hub("openai/gsm8k", "main")

    @property
    def data_digest(self) -> str:
        parts = [self.rows.digest, *([self._training.digest] if self.shots > 8 else [])]
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()

    def defect(self, row: Mapping[str, Any]) -> str | None:
        return None if "#### " in row["answer"] else "answer has no '#### ' before its number"

    @cached_property
    def _training(self) -> Rows:
        try:
            if self.train is not None:
                rows = read(self.train, "train")
            else:
                rows = download(Hub("openai/gsm8k", "main", "train"))
            rows = rows.checked(self.fields, self.defect)
        except UserError as error:
            raise UserError(str(error).replace("data:", "train:", 1)) from None
        if len(rows.rows) < self.shots - 8:
            raise UserError(
                f"train: {rows.place} has {len(rows.rows)} rows, {self.shots} shots need {self.shots - 8}"
            )
        return rows

    @cached_property
    def _shown(self) -> list[tuple[str, str]]:
        """Question and solution of the examples, in the order of the prompt."""
        found = list(first_examples()[: self.shots])
        if self.shots > 8:
            rows = list(self._training.rows)
            if self.draw is not None:
                rows = stream("gsm8k_shots", self.draw).sample(rows, self.shots - 8)
            found += [(row["question"], solution(row["answer"])) for row in rows[: self.shots - 8]]
        return found

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        row = self.rows.rows[index]
        context = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in self._shown)
        sample = Sample(
            context=context,
            question=f"Q: {row['question']}\nA:",
            answer_prefix="",
            gold=(number(row["answer"]),),
            max_new_tokens=self.max_new_tokens or 256,
            meta={"row": index, "shots": self.shots},
            stop=Stop(tuple(task_file(_FILE)["generation_kwargs"]["until"])),
            context_known=bool(context),
            shared=True,
        )
        tokens = renderer.count(sample) + sample.max_new_tokens
        if renderer.limit is not None and tokens > renderer.limit:
            raise UserError(
                f"shots: {self.shots} are too many, data: row {index + 1} has {tokens} tokens with its answer and the "
                f"model takes {renderer.limit}"
            )
        return sample

    def scores(self, output: str, sample: Sample) -> dict[str, float | list[float]]:
        (gold,) = sample.gold
        return {"flexible": flexible(output, gold), "strict": strict(output, gold)}

    def examples(self, count: int, words: int) -> Sequence[Mapping[str, Any]]:
        found = []
        for index in range(count):
            rng = random.Random(f"gsm8k/{index}")
            first, second = rng.randrange(2, 60), rng.randrange(2, 60)
            whole = first + second
            asked = f"A shelf has {first} red and {second} blue books. How many books does it have?"
            answer = f"It has {first} + {second} = <<{first}+{second}={whole}>>{whole} books.\n#### {whole}"
            found.append({"question": asked, "answer": answer})
        return found


@cache
def first_examples() -> tuple[tuple[str, str], ...]:
    """The eight examples of lm-eval's gsm8k_cot.

    Raises:
        UserError: lm-eval is missing, or its text is another one.
    """
    found = task_file(_FILE)
    try:
        pairs = tuple((one["question"], one["target"]) for one in found["fewshot_config"]["samples"])
        text = json.dumps([found["doc_to_text"], pairs, found["generation_kwargs"]["until"]])
    except (KeyError, TypeError):
        raise changed(_FILE) from None
    if hashlib.sha256(text.encode()).hexdigest()[:16] != _WORDING:
        raise changed(_FILE)
    return pairs


def solution(answer: str) -> str:
    """A training answer as an example ends: without calculator marks, with the closing sentence."""
    steps, _, last = answer.rpartition("####")
    return " ".join(_MARK.sub("", steps).split()) + _CLOSING.format(last.strip())


def number(answer: str) -> str:
    """The number that a row's answer ends with."""
    return answer.split("####")[-1].strip()


def strict(output: str, gold: str) -> float:
    """1 if the first number after the closing sentence is the gold one, both as text."""
    found = _STRICT.findall(output)
    return float(bool(found) and _bare(found[0].strip()) == _bare(gold))


def flexible(output: str, gold: str) -> float:
    """1 if the last number of the output is the gold one, both as text."""
    found = _FLEXIBLE.findall(output)
    if not found:
        return 0.0
    return float(_bare(next(part for part in found[-1] if part).strip()) == _bare(gold))


def _bare(text: str) -> str:
    for lost in _LOST:
        text = lost.sub("", text)
    return text.lower()
