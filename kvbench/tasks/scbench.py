"""SCBench: twelve tasks with several questions about one long context, as a conversation or each by itself."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from kvbench.config.errors import UserError
from kvbench.tasks import made_up
from kvbench.tasks import scbench_scores as scorers
from kvbench.tasks.base import register
from kvbench.tasks.dataset import DataSet
from kvbench.tasks.prompt import Renderer, Sample, Turn
from kvbench.tasks.rows import Hub, Kind
from kvbench.tasks.scbench_names import NAMES
from kvbench.tasks.scbench_wording import Sentences, sentences
from kvbench.tasks.truncate import cut_context

Name = Literal[
    "kv", "prefix_suffix", "vt", "repoqa", "qa_eng", "qa_chn", "choice_eng", "many_shot", "mf", "summary",
    "summary_with_needles", "repoqa_and_kv",
]  # fmt: skip
# longest answers, by task or by the kind of a turn (microsoft/MInference, scbench/eval_utils.py)
_TOKENS: Mapping[str, int | Mapping[str, int]] = {
    "choice_eng": 40, "qa_eng": 40, "qa_chn": 40, "kv": 150, "prefix_suffix": 150, "mf": 5, "repoqa": 1024,
    "summary": 200, "vt": 30, "many_shot": 10, "summary_with_needles": {"summary": 800, "passkey": 15},
    "repoqa_and_kv": {"repoqa": 1024, "kv": 80},
}  # fmt: skip
# rows and thousands of tokens of a prompt on the hub, cut to 128K; some are not known and taken as their like
_SIZES = {
    name: (rows, 1000 * min(tokens, 127))
    for name, (rows, tokens) in {
        "choice_eng": (58, 119), "kv": (100, 169), "prefix_suffix": (100, 113), "vt": (90, 125), "repoqa": (88, 72),
        "qa_eng": (69, 122), "qa_chn": (35, 127), "many_shot": (54, 26), "mf": (100, 150), "summary": (70, 118),
        "summary_with_needles": (70, 118), "repoqa_and_kv": (88, 72),
    }.items()
}  # fmt: skip
_LETTERS = "ABCD"
#: tokens that the official code leaves free for a question where the context is alone
_ROOM = 1000
_TURNS: Kind = (
    "a list of {input, answer}, at least one",
    lambda value: (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict) and isinstance(turn.get("input"), str) and "answer" in turn
            for turn in value
        )
    ),
)


@register("scbench")
@dataclass(frozen=True, kw_only=True)
class SCBench(DataSet):
    """A task of SCBench (Li et al., 2024, arXiv:2412.10319; github.com/microsoft/MInference).

    A sample is a turn; earlier turns hold the gold answers. `fixed` scores hand every scorer the list that it expects,
    `official` ones the text that the authors' code hands it; both are stored. Prompts of `quirks` have what the
    authors' code has by oversight: in mf, follow-ups with the last turn's question in front; in summary, follow-ups
    that begin the answer with two words; in choice_eng, other words in follow-ups.

    Attributes:
        name: the task.
        mode: multi_turn, a conversation; or multi_request, each question by itself behind the same context.
        repo: a clone of microsoft/MInference, whose sentences are used; None for our own (wording=own).
        quirks: whether prompts have the official code's oversights.
        max_turns: questions of a row, the first ones.
        max_length: tokens of first prompt and answers; longer ones are cut in the middle, None for what the model
            takes.
    """

    is_task: ClassVar[bool] = False
    names: ClassVar[dict[str, str]] = NAMES
    paths: ClassVar[tuple[str, ...]] = ("data", "download", "repo")
    source: ClassVar[str] = "SCBench, github.com/microsoft/MInference"
    licence: ClassVar[str] = "MIT"
    lengths: ClassVar[str] = "26K to 170K tokens, qa_chn 1.5M characters"
    scored: ClassVar[str] = "official by task, and fixed where the authors' code walks a text by character"
    needs: ClassVar[str] = (
        "rows of microsoft/SCBench on the hub: data=FOLDER, or download=true; wording: repo=CLONE"
    )
    home: ClassVar[str] = "SCBench, microsoft/SCBench on the Hugging Face hub"
    fields: ClassVar[Mapping[str, Kind]] = {"multi_turns": _TURNS}

    name: Name
    mode: Literal["multi_turn", "multi_request"] = "multi_turn"
    repo: str | None = None
    quirks: bool = False
    max_turns: int = 5
    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_turns < 1:
            raise UserError(f"max_turns: {self.max_turns} is not allowed, give 1 or more")
        if self.max_length is not None and self.max_length < 64:
            raise UserError(f"max_length: {self.max_length} is not allowed, give 64 or more tokens, or null")

    @property
    def metric(self) -> str:
        return "fixed"

    @property
    def typical(self) -> tuple[int, int, int]:
        rows, tokens = _SIZES[self.name]
        limits = _TOKENS[self.name]
        answer = limits if isinstance(limits, int) else max(limits.values())
        return rows * self.max_turns, tokens, self.max_new_tokens or answer

    @property
    def wording(self) -> str:
        return self._sentences.label

    @cached_property
    def _sentences(self) -> Sentences:
        return sentences(self.name, self.repo)

    @property
    def data_name(self) -> str:
        return f"scbench_{self.name}"

    @property
    def hub(self) -> Hub:
        return Hub("microsoft/SCBench", self.data_name)

    def defect(self, row: Mapping[str, Any]) -> str | None:
        context = row.get("context", row.get("input"))
        if not isinstance(context, list if self.name == "mf" else str):
            return f"context must be {'a list of numbers' if self.name == 'mf' else 'text'}"
        for number, turn in enumerate(row["multi_turns"], start=1):
            where = f"multi_turns {number}"
            if self.name == "choice_eng":
                options = turn.get("options")
                if not isinstance(options, list) or len(options) != 4 or turn["answer"] not in options:
                    return f"{where}: options must be four texts, the answer among them"
            if self.name == "mf" and _TARGET.search(turn["input"]) is None:
                return f"{where}: input has no sentence `The ... is`"
            kinds = _TOKENS[self.name]
            if isinstance(kinds, Mapping) and _kind(turn) not in kinds:
                return f"{where}: task must be {' or '.join(f'scbench_{kind}' for kind in kinds)}"
            if self._is_function(turn) and not (
                isinstance(turn.get("name"), str) and row.get("lang") and row.get("repo")
            ):
                return f"{where}: a function needs lang and repo of its row, and name"
        return None

    def available(self) -> int:
        scorers.check_packages(self.name)
        return len(self._questions)

    @cached_property
    def _questions(self) -> list[tuple[int, int]]:
        """Row and turn of every question."""
        return [
            (number, turn)
            for number, row in enumerate(self.rows.rows)
            for turn in range(min(self.max_turns, len(row["multi_turns"])))
        ]

    @cached_property
    def _needles(self) -> dict[str, list[tuple[str, str]]]:
        """Name and code of the functions that are asked for, by repository."""
        found: dict[str, list[tuple[str, str]]] = {}
        for number, turn in self._questions:
            row = self.rows.rows[number]
            asked = row["multi_turns"][turn]
            if self._is_function(asked):
                found.setdefault(row["repo"], []).append((asked["name"], asked["answer"]))
        return found

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        number, turn = self._questions[index]
        row = self.rows.rows[number]
        turns = row["multi_turns"][: self.max_turns]
        context = str(row.get("context", row.get("input")))
        meta = {"row": number, "conversation": number, "turn": turn} | (
            {"id": row["id"]} if "id" in row else {}
        )
        if self.mode == "multi_request":
            head, behind = self._sentences.head.format(context="\0", prefix=turns[0]["input"]).split("\0")
            asked = self._filled(self._sentences.asked, turns[turn])
            sample = Sample(head + context + behind, asked, "", (), 1, meta, shared=True)
            room = _ROOM
        else:
            head, behind = self._filled(self._sentences.first, turns[0], context="\0").split("\0")
            questions = [behind, *(self._follow_up(turns, later) for later in range(1, len(turns)))]
            begins = "This paper" if self.quirks and self.name == "summary" else ""
            earlier = tuple(
                Turn(questions[past], begins if past else "", str(turns[past]["answer"]), "")
                for past in range(turn)
            )
            prefix = begins if turn else ""
            sample = Sample(head + context, questions[turn], prefix, (), 1, meta, earlier, shared=True)
            room = sum(self._tokens(one) for one in turns)
        sample = replace(sample, gold=_texts(turns[turn]["answer"]), max_new_tokens=self._tokens(turns[turn]))
        limit = None if self.max_length is None else self.max_length - room
        return cut_context(sample, limit, renderer, f"data: row {number + 1}")

    def _follow_up(self, turns: Sequence[Mapping[str, Any]], number: int) -> str:
        text = self._sentences.following
        if not self.quirks and self.name == "choice_eng":
            text = self._sentences.first.partition("{context}")[2].lstrip()
        # by oversight, the target of the last turn stands before every follow-up of mf
        named = turns[-1] if self.quirks and self.name == "mf" else turns[number]
        return self._filled(text, turns[number], named=named)

    def _filled(
        self, text: str, turn: Mapping[str, Any], named: Mapping[str, Any] | None = None, **more: str
    ) -> str:
        options = dict(
            zip((f"OPTION_{letter}" for letter in _LETTERS), turn.get("options", ()), strict=False)
        )
        prefix = ""
        if self.name == "mf":
            target = _TARGET.search((named or turn)["input"])
            assert target is not None
            prefix = f"What is {target.group().lower()[:-3]}?"
        return text.format(input=turn["input"], question=turn["input"], prefix=prefix, **options, **more)

    def _tokens(self, turn: Mapping[str, Any]) -> int:
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        tokens = _TOKENS[self.name]
        return tokens if isinstance(tokens, int) else tokens[_kind(turn)]

    def _is_function(self, turn: Mapping[str, Any]) -> bool:
        return self.name == "repoqa" or (self.name == "repoqa_and_kv" and _kind(turn) == "repoqa")

    def scores(self, output: str, sample: Sample) -> dict[str, float | list[float]]:
        row = self.rows.rows[sample.meta["row"]]
        turn = row["multi_turns"][sample.meta["turn"]]
        label = turn["answer"]
        kind = _kind(turn) if isinstance(_TOKENS[self.name], Mapping) else self.name
        if kind == "repoqa":
            needles = self._needles[row["repo"]]
            found = official = scorers.function(output, turn["name"], needles, row["lang"])
        elif kind == "mf":
            found = official = scorers.first_number(output, label)
        elif kind == "choice_eng":
            found = official = scorers.choice(output, [label, _LETTERS[turn["options"].index(label)]])
        elif kind in ("qa_chn", "many_shot", "vt", "qa_eng"):
            rule = {"qa_chn": scorers.f1_zh, "vt": scorers.all_of}.get(kind, scorers.any_of)
            labels = [label] if isinstance(label, str) else label
            found = rule(output, labels)
            # a text is walked by character, but in qa_eng, where the official code makes a list of it
            official = found if kind == "qa_eng" else rule(output, label)
        else:
            rule = {"summary": scorers.rouge_lsum, "passkey": scorers.digits}.get(kind, scorers.contains)
            found = official = rule(output, label)
        by_kind = {kind: found} if isinstance(_TOKENS[self.name], Mapping) else {}
        return {"fixed": found, "official": official, **by_kind}

    def examples(self, count: int, words: int) -> Sequence[Mapping[str, Any]]:
        return [
            _example(self.name, random.Random(f"scbench/{self.name}/{n}"), n, words) for n in range(count)
        ]


_TARGET = re.compile(r"The .+ is")


def _kind(turn: Mapping[str, Any]) -> str:
    """The kind of a turn of the mixed tasks."""
    return str(turn.get("task", "")).removeprefix("scbench_")


def _texts(answer: Any) -> tuple[str, ...]:
    return tuple(map(str, answer)) if isinstance(answer, list | tuple) else (str(answer),)


def _example(name: str, rng: random.Random, index: int, words: int) -> dict[str, Any]:
    """A made-up row with three turns."""
    facts = [made_up.fact(rng, max(words // 3, 1)) for _ in range(3)]
    row: dict[str, Any] = {"id": index, "context": "\n\n".join(fact.text for fact in facts)}
    turns: list[dict[str, Any]] = [{"input": fact.question, "answer": fact.value} for fact in facts]
    if name == "mf":
        numbers = [rng.randrange(1, 100) for _ in range(max(words, 3))]
        row["context"] = numbers
        values = {"smallest": min(numbers), "largest": max(numbers), "first": numbers[0]}
        turns = [{"input": f"The {what} number is", "answer": value} for what, value in values.items()]
    elif name == "vt":
        turns = [{**turn, "answer": [turn["answer"]]} for turn in turns]
    elif name == "choice_eng":
        for turn in turns:
            options = [turn["answer"], "none of them", "one", "two"]
            rng.shuffle(options)
            turn["options"] = options
    elif name in ("summary_with_needles", "repoqa_and_kv"):
        first, second = ("summary", "passkey") if name == "summary_with_needles" else ("repoqa", "kv")
        for number, turn in enumerate(turns):
            turn["task"] = f"scbench_{(first, second)[number % 2]}"
    if name in ("repoqa", "repoqa_and_kv"):
        row |= {"lang": "python", "repo": "made/up"}
        for number, turn in enumerate(turns):
            if turn.get("task") != "scbench_kv":
                turn |= {
                    "name": f"add_{index}_{number}",
                    "answer": f"def add_{index}_{number}(x):\n    return x + {number}\n",
                }
    if name == "prefix_suffix":
        del row["id"]
    return {**row, "multi_turns": turns}
