"""LongBench v2: questions with four options about long texts, answered by generation as its authors do."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kvbench.config.errors import UserError
from kvbench.tasks import made_up
from kvbench.tasks.base import register
from kvbench.tasks.dataset import DataSet
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.rows import TEXT, Hub, Kind
from kvbench.tasks.truncate import fit_middle

_FILE = "prompts/0shot.txt"
_LETTERS = "ABCD"
_OWN = (
    "Read the text and answer the question about it.\n\n$DOC$\n\nQuestion: $Q$\n(A) $C_A$\n(B) $C_B$\n(C) $C_C$\n"
    "(D) $C_D$\n\nEnd with one sentence of this form, with the letter of the right option: The correct answer is (X)"
)
_ANSWERS = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))


@register("longbench2")
@dataclass(frozen=True, kw_only=True)
class LongBench2(DataSet):
    """LongBench v2 (Bai et al., 2024, arXiv:2412.15204), without reasoning and greedy.

    The letter is read from the sentence that the prompt asks for; an answer without it is wrong. lm-eval's
    `longbench2` is another task, scored by likelihoods.

    Attributes:
        repo: a clone of THUDM/LongBench, whose prompt is used; None for our own (wording=own).
        max_length: tokens of a prompt before the chat template, officially 120000; longer ones are cut in the middle,
            None for what the model takes.
    """

    paths: ClassVar[tuple[str, ...]] = ("data", "download", "repo")
    source: ClassVar[str] = "LongBench v2, github.com/THUDM/LongBench"
    licence: ClassVar[str] = "Apache-2.0 (rows); MIT (prompts)"
    lengths: ClassVar[str] = "8K to 2M words"
    scored: ClassVar[str] = "official: the letter of the sentence that is asked for"
    needs: ClassVar[str] = (
        "rows of THUDM/LongBench-v2 on the hub: data=FILE, or download=true; wording: repo=CLONE"
    )
    home: ClassVar[str] = "LongBench v2, THUDM/LongBench-v2 on the Hugging Face hub"
    fields: ClassVar[Mapping[str, Kind]] = {
        "_id": TEXT, "difficulty": TEXT, "length": TEXT, "question": TEXT, "context": TEXT,
        **{f"choice_{letter}": TEXT for letter in _LETTERS},
        "answer": ("a letter A to D", lambda value: isinstance(value, str) and value in tuple(_LETTERS)),
    }  # fmt: skip

    repo: str | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"max_length: {self.max_length} is not allowed, give 2 or more tokens, or null")

    @property
    def metric(self) -> str:
        return "accuracy"

    @property
    def aggregate(self) -> Mapping[str, str]:
        return {"accuracy": "by:difficulty,words"}

    @property
    def wording(self) -> str:
        if self.repo is None:
            return "own"
        return f"longbench2 ({hashlib.sha256(self._prompt().encode()).hexdigest()[:8]})"

    @property
    def data_name(self) -> str:
        return "longbench2"

    @property
    def hub(self) -> Hub:
        return Hub("THUDM/LongBench-v2", split="train")

    def _prompt(self) -> str:
        if self.repo is None:
            return _OWN
        path = Path(self.repo).expanduser() / _FILE
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(
                f"repo: {self.repo} has no {_FILE} ({error}); give the folder of a clone of "
                "github.com/THUDM/LongBench, or leave repo out for wording=own"
            ) from None
        marks = ("$DOC$", "$Q$", *(f"$C_{letter}$" for letter in _LETTERS))
        if missing := [mark for mark in marks if text.count(mark) != 1]:
            raise UserError(f"repo: {path} has not one {missing[0]}; leave repo out for wording=own")
        return text

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        row = self.rows.rows[index]
        head, tail = self._prompt().split("$DOC$")
        # one pass, so that a mark within a row's text stays
        texts = {"$Q$": row["question"], **{f"$C_{letter}$": row[f"choice_{letter}"] for letter in _LETTERS}}
        question = re.sub(r"\$(?:Q|C_[A-D])\$", lambda found: texts[found.group()].strip(), tail)
        sample = Sample(
            context=head + row["context"].strip(),
            question=question,
            answer_prefix="",
            gold=(row["answer"],),
            max_new_tokens=self.max_new_tokens or 128,
            meta={"id": row["_id"], "row": index, "difficulty": row["difficulty"], "words": row["length"]},
        )
        return fit_middle(sample, self.max_length, renderer, f"data: row {index + 1}")

    def scores(self, output: str, sample: Sample) -> dict[str, float | list[float]]:
        return {"accuracy": float(letter(output) == sample.gold[0])}

    def examples(self, count: int, words: int) -> Sequence[Mapping[str, Any]]:
        found = []
        for index in range(count):
            rng = random.Random(f"longbench2/{index}")
            fact = made_up.fact(rng, words)
            options = [fact.value, *(str(rng.randrange(10**6, 10**7)) for _ in range(3))]
            rng.shuffle(options)
            found.append(
                {
                    "_id": f"made-up-{index}", "domain": "made up", "sub_domain": "made up",
                    "difficulty": ("easy", "hard")[index % 2], "length": ("short", "medium", "long")[index % 3],
                    "question": fact.question, "context": fact.text, "answer": _LETTERS[options.index(fact.value)],
                    **{f"choice_{name}": text for name, text in zip(_LETTERS, options, strict=True)},
                }
            )  # fmt: skip
        return found


def letter(output: str) -> str | None:
    """The letter of the first sentence of the asked form, the one in brackets first; asterisks do not count."""
    text = output.replace("*", "")
    return next((found.group(1) for rule in _ANSWERS if (found := rule.search(text))), None)
