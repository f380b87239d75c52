"""The user's own questions, from a file with one JSON object per line."""

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from kvbench.errors import UserError
from kvbench.tasks.base import Family, register
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.scorers import scorers

Scorer = Literal["substring_all", "substring_any", "exact", "f1", "rouge_l", "regex"]


@register("jsonl")
@dataclass(frozen=True, kw_only=True)
class Jsonl(Family):
    """Lines `{"context": ..., "question": ..., "answers": [...]}`, taken in the order of the file.

    A line may also have `answer_prefix`, `max_new_tokens` and `id`. The message is the context, an empty
    line, the question. Prompts have the length that they have; `length` is the most that is allowed, answer
    included, 0 for as much as the model can take.

    Attributes:
        path: the file.
        scorer: how an answer is scored; with "regex" the answers are regular expressions.
        truncate: what happens to longer prompts: "error", or "middle" to cut the middle out of the context.
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
        return len(self._records())

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        line, record = self._records()[index]
        meta = {"line": line} | ({"id": record["id"]} if "id" in record else {})
        answers = record["answers"]
        sample = Sample(
            context=record["context"],
            question="\n\n" + record["question"],
            answer_prefix=record.get("answer_prefix", ""),
            gold=(answers,) if isinstance(answers, str) else tuple(answers),
            max_new_tokens=record.get("max_new_tokens", self.max_new_tokens),
            meta=meta,
        )
        limit = length or renderer.limit
        if limit is None:
            return sample
        room = limit - sample.max_new_tokens
        tokens = renderer.count(sample)
        if tokens <= room:
            return sample
        if self.truncate == "error":
            raise UserError(
                f"path: {self.path} line {line} has {tokens} tokens and {sample.max_new_tokens} for the "
                f"answer, {limit} are allowed; shorten it or use truncate=middle"
            )
        return self._cut(sample, tokens, room, renderer)

    def score(self, output: str, sample: Sample) -> float:
        return scorers()[self.scorer](output, sample.gold)

    def _cut(self, sample: Sample, tokens: int, room: int, renderer: Renderer) -> Sample:
        """Takes tokens out of the middle of the context until the prompt fits."""
        offsets = renderer.offsets(sample.context)
        keep, cut = len(offsets), sample
        # tokens at the seam may merge otherwise than before, so the count decides
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
            # JSON can hold characters that no text can: halves of surrogate pairs
            json.dumps(record, ensure_ascii=False).encode()
        except ValueError as error:
            raise UserError(f"path: {file} line {line} is no JSON text ({error})") from None
        fault = _fault(record, scorer)
        if fault:
            raise UserError(f"path: {file} line {line}: {fault}")
        records.append((line, record))
    if not records:
        raise UserError(f"path: {file} has no lines")
    return records


def _fault(record: Any, scorer: Scorer) -> str | None:
    """What is wrong with a line, or None."""
    if not isinstance(record, dict):
        return "not an object {context, question, answers}"
    for key in ("context", "question", "answers"):
        if key not in record:
            return f"{key} is missing"
    for key in ("context", "question", "answer_prefix"):
        if not isinstance(record.get(key, ""), str):
            return f"{key} must be text"
    answers = [record["answers"]] if isinstance(record["answers"], str) else record["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a for a in answers):
        return "answers must be a list of texts, at least one, none of them empty"
    limit = record.get("max_new_tokens", 1)
    if type(limit) is not int or limit < 1:
        return "max_new_tokens must be a positive whole number"
    if scorer == "regex":
        for pattern in answers:
            try:
                re.compile(pattern)
            except re.error as error:
                return f"answers: {pattern!r} is no regular expression ({error})"
    return None
