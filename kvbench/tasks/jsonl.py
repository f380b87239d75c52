"""The user's own questions, from a file with one JSON object per line."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from kvbench.config.errors import UserError
from kvbench.tasks.base import Family, register
from kvbench.tasks.lines import read_records
from kvbench.tasks.patterns import ScoreError
from kvbench.tasks.prompt import Renderer, Sample, Turn
from kvbench.tasks.scorers import scorer_version, scorers

Scorer = Literal["substring_all", "substring_any", "exact", "f1", "rouge_l", "regex"]


@register("jsonl")
@dataclass(frozen=True, kw_only=True)
class Jsonl(Family):
    """Your own questions: one JSON object {context, question, answers} per line of a file, in its order.

    A line may also have `answer_prefix`, `max_new_tokens` and `id`, and no other key. The message is the context, an
    empty line and the question. `length` is the maximum for prompt and answer, 0 for the model's; shorter prompts are
    not filled up. Every line counts, one that the file has three times as three samples.

    A line `{"context": ..., "turns": [{"question": ..., "answers": [...]}, ...]}` is a conversation in which each turn
    is a sample; earlier turns are answered with the first of their answers.

    Attributes:
        path: the file.
        samples: number of questions, the first ones of the file; None for all of them.
        scorer: "substring_all", "substring_any", "exact", "f1", "rouge_l", or "regex", for which the answers are
            regular expressions.
        truncate: what happens to longer prompts: "error", or "middle", which cuts the middle out of the context.
    """

    seeded: ClassVar[bool] = False
    from_file: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("path",)
    lengths: ClassVar[str] = "of the file"
    scored: ClassVar[str] = "the scorer you choose"
    needs: ClassVar[str] = "path=FILE; kvbench data jsonl writes one to start from"

    samples: int | None = None
    length: tuple[int, ...] = (0,)
    path: str | None = None
    scorer: Scorer = "substring_any"
    truncate: Literal["error", "middle"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise UserError("path: give a file with one JSON object per line {context, question, answers}")

    @property
    def metric(self) -> str:
        return self.scorer

    @property
    def scorer_version(self) -> int:
        return scorer_version(self.scorer)

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
        try:
            return scorers()[self.scorer](output, sample.gold)
        except ScoreError as error:
            raise ScoreError(f"path: {self.path} line {sample.meta['line']}: {error}") from None

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
            # tokens of one character have the same place
            context = sample.context[:start] + sample.context[max(start, end) :]
            cut = replace(sample, context=context, meta={**sample.meta, "cut_tokens": len(offsets) - keep})
            tokens = renderer.count(cut)
        if self.scorer != "regex" and _states(sample) and not _states(cut):
            cut = replace(cut, meta={**cut.meta, "answer_cut": True})
        return cut

    def _questions(self) -> list[tuple[int, dict[str, Any], int]]:
        """Line, record and turn number of every question."""
        assert self.path is not None
        return [
            (line, record, number)
            for line, record in read_records(self.path, self.scorer == "regex")
            for number in range(len(record.get("turns", "1")))
        ]


def _states(sample: Sample) -> bool:
    """Whether the context has one of the answers word for word."""
    context = sample.context.lower()
    return any(answer.lower() in context for answer in sample.gold)
