"""The user's own questions, from a file with one JSON object per line."""

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from kvbench.config.errors import UserError
from kvbench.tasks.base import Family, register
from kvbench.tasks.prompt import Renderer, Sample, Turn
from kvbench.tasks.scorers import scorers

Scorer = Literal["substring_all", "substring_any", "exact", "f1", "rouge_l", "regex"]


@register("jsonl")
@dataclass(frozen=True, kw_only=True)
class Jsonl(Family):
    """Your own questions: one JSON object {context, question, answers} per line of a file, in its order.

    A line may also have `answer_prefix`, `max_new_tokens` and `id`. The message is the context, an empty line and the
    question. `length` is the maximum for prompt and answer, 0 for the model's; shorter prompts are not filled up.

    A line `{"context": ..., "turns": [{"question": ..., "answers": [...]}, ...]}` is a conversation in which each turn
    is a sample; earlier turns are answered with the first of their answers.

    Attributes:
        path: the file.
        scorer: "substring_all", "substring_any", "exact", "f1", "rouge_l", or "regex", for which the answers are
            regular expressions.
        truncate: what happens to longer prompts: "error", or "middle", which cuts the middle out of the context.
    """

    seeded: ClassVar[bool] = False
    paths: ClassVar[tuple[str, ...]] = ("path",)

    length: tuple[int, ...] = (0,)
    path: str | None = None
    scorer: Scorer = "substring_any"
    truncate: Literal["error", "middle"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.length or min(self.length) < 0:
            raise UserError(f"length: {list(self.length)} is not allowed, give 0 or numbers of tokens")
        if not self.path:
            raise UserError("path: give a file with one JSON object per line {context, question, answers}")

    @property
    def metric(self) -> str:
        return self.scorer

    def available(self) -> int:
        return len(self._questions())

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        line, record, number = self._questions()[index]
        turns = [self._ask(record, turn) for turn in record.get("turns", [record])]
        earlier = tuple(Turn(one.question, one.answer_prefix, one.gold[0]) for one in turns[:-1])
        meta = {"line": line} | ({"id": record["id"]} if "id" in record else {})
        last = self._fitted(replace(turns[-1], earlier=earlier, meta=meta), length, renderer)
        turn = {"turn": number} if "turns" in record else {}
        return replace(
            turns[number], context=last.context, earlier=earlier[:number], meta={**last.meta, **turn}
        )

    def _ask(self, record: dict[str, Any], turn: dict[str, Any]) -> Sample:
        answers = turn["answers"]
        return Sample(
            context=record["context"],
            question="\n\n" + turn["question"],
            answer_prefix=turn.get("answer_prefix", ""),
            gold=(answers,) if isinstance(answers, str) else tuple(answers),
            max_new_tokens=turn.get("max_new_tokens", self.max_new_tokens),
        )

    def _fitted(self, sample: Sample, length: int, renderer: Renderer) -> Sample:
        """The sample, its context cut if needed; the last turn of a conversation is the longest."""
        limit = length or renderer.limit
        if limit is None:
            return sample
        room = limit - sample.max_new_tokens
        tokens = renderer.count(sample)
        if tokens <= room:
            return sample
        if self.truncate == "error":
            raise UserError(
                f"path: {self.path} line {sample.meta['line']} has {tokens} tokens and {sample.max_new_tokens} for "
                f"the answer, {limit} are allowed; shorten it or use truncate=middle"
            )
        return self._cut(sample, tokens, room, renderer)

    def score(self, output: str, sample: Sample) -> float:
        return scorers()[self.scorer](output, sample.gold)

    def _cut(self, sample: Sample, tokens: int, room: int, renderer: Renderer) -> Sample:
        """Cut the middle out of the context until the prompt fits."""
        offsets = renderer.offsets(sample.context)
        keep, cut = len(offsets), sample
        # tokens at the cut may merge differently, so count again
        while tokens > room:
            keep -= tokens - room
            if keep < 2:
                line = sample.meta["line"]
                raise UserError(f"path: {self.path} line {line} is too long even without its context")
            start, end = offsets[keep - keep // 2 - 1][1], offsets[len(offsets) - keep // 2][0]
            context = sample.context[:start] + sample.context[end:]
            cut = replace(sample, context=context, meta={**sample.meta, "cut_tokens": len(offsets) - keep})
            tokens = renderer.count(cut)
        return cut

    def _questions(self) -> list[tuple[int, dict[str, Any], int]]:
        """Line, record and turn number of every question."""
        return [
            (line, record, number)
            for line, record in self._records()
            for number in range(len(record.get("turns", "1")))
        ]

    def _records(self) -> list[tuple[int, dict[str, Any]]]:
        assert self.path is not None
        file = Path(self.path).expanduser()
        try:
            stat = file.stat()
            return _read(file, stat.st_mtime_ns, stat.st_size, self.scorer)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"path: {self.path} cannot be read as UTF-8 text ({error})") from None


@lru_cache(maxsize=4)
def _read(file: Path, mtime_ns: int, size: int, scorer: Scorer) -> list[tuple[int, dict[str, Any]]]:
    records = []
    for line, text in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
            # JSON allows lone surrogates, which cannot be encoded
            json.dumps(record, ensure_ascii=False).encode()
        except ValueError as error:
            raise UserError(f"path: {file} line {line} is not JSON ({error})") from None
        fault = _fault(record, scorer)
        if fault:
            raise UserError(f"path: {file} line {line}: {fault}")
        records.append((line, record))
    if not records:
        raise UserError(f"path: {file} has no lines")
    return records


def _fault(record: Any, scorer: Scorer) -> str | None:
    """The defect of a line, or None."""
    if not isinstance(record, dict):
        return "not an object {context, question, answers}"
    for key in ("context",) if "turns" in record else ("context", "question", "answers"):
        if key not in record:
            return f"{key} is missing"
    if not isinstance(record["context"], str):
        return "context must be text"
    if "turns" not in record:
        return _fault_of_turn(record, scorer)
    if scorer == "regex":
        return "turns need answers as text, not patterns (scorer=regex)"
    if not isinstance(record["turns"], list) or not record["turns"]:
        return "turns must be a list of {question, answers}, at least one"
    for number, turn in enumerate(record["turns"], start=1):
        if not isinstance(turn, dict) or "question" not in turn or "answers" not in turn:
            return f"turn {number}: not an object {{question, answers}}"
        if fault := _fault_of_turn(turn, scorer):
            return f"turn {number}: {fault}"
    return None


def _fault_of_turn(turn: dict[str, Any], scorer: Scorer) -> str | None:
    for key in ("question", "answer_prefix"):
        if not isinstance(turn.get(key, ""), str):
            return f"{key} must be text"
    answers = [turn["answers"]] if isinstance(turn["answers"], str) else turn["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a for a in answers):
        return "answers must be a list of texts, at least one, none of them empty"
    limit = turn.get("max_new_tokens", 1)
    if type(limit) is not int or limit < 1:
        return "max_new_tokens must be a positive whole number"
    if scorer == "regex":
        for pattern in answers:
            try:
                re.compile(pattern)
            except re.error as error:
                return f"answers: {pattern!r} is not a regular expression ({error})"
    return None
