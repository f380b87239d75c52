"""LongBench and LongBench-E: 21 tasks from the original rows, prompted, cut and scored as its authors do."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from kvbench.config.errors import UserError
from kvbench.tasks import made_up
from kvbench.tasks.base import register
from kvbench.tasks.dataset import DataSet
from kvbench.tasks.lm_eval_files import changed, task_file
from kvbench.tasks.longbench_scores import SCORES
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.rows import TEXT, TEXTS, WHOLE, Hub, Kind, required
from kvbench.tasks.stop import Stop
from kvbench.tasks.truncate import fit_middle

Name = Literal[
    "narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh", "hotpotqa", "2wikimqa", "musique", "dureader",
    "gov_report", "qmsum", "multi_news", "vcsum", "trec", "triviaqa", "samsum", "lsht", "passage_count",
    "passage_retrieval_en", "passage_retrieval_zh", "lcc", "repobench-p",
]  # fmt: skip


@dataclass(frozen=True)
class _Task:
    """One task.

    Attributes:
        score: name of its score.
        tokens: longest answer.
        digest: first 16 digits of the SHA-256 of the official prompt, with {context} and {input}.
        plain: whether it has no chat template.
        first_line: whether only the first line of an answer counts.
        extended: whether LongBench-E has it.
    """

    score: str
    tokens: int
    digest: str
    plain: bool = False
    first_line: bool = False
    extended: bool = False


# facts of THUDM/LongBench, LongBench/config and LongBench/pred.py
_TASKS = {
    "narrativeqa": _Task("qa_f1", 128, "aada7ed24b06abac"),
    "qasper": _Task("qa_f1", 128, "0fbdd123fe7f83d6", extended=True),
    "multifieldqa_en": _Task("qa_f1", 64, "20b4666a2de8a1f7", extended=True),
    "multifieldqa_zh": _Task("qa_f1_zh", 64, "344b3a4e557cd547"),
    "hotpotqa": _Task("qa_f1", 32, "9ec4ae308865bd0c", extended=True),
    "2wikimqa": _Task("qa_f1", 32, "9ec4ae308865bd0c", extended=True),
    "musique": _Task("qa_f1", 32, "9ec4ae308865bd0c"),
    "dureader": _Task("rouge_zh", 128, "ae53329f51b17908"),
    "gov_report": _Task("rouge", 512, "91c25d585b189ced", extended=True),
    "qmsum": _Task("rouge", 512, "dca23b678fe0183b"),
    "multi_news": _Task("rouge", 512, "2af3f28c40b902e6", extended=True),
    "vcsum": _Task("rouge_zh", 512, "3e5d8241bc9b512e"),
    "trec": _Task("classification", 64, "0eff8bebdba99d91", True, True, True),
    "triviaqa": _Task("qa_f1", 32, "00a802e6377e72fc", True, True, True),
    "samsum": _Task("rouge", 128, "a68d884234907eef", True, True, True),
    "lsht": _Task("classification", 64, "f3edabdf7fae53d6", True, True),
    "passage_count": _Task("count", 32, "986550b6c61009c6", extended=True),
    "passage_retrieval_en": _Task("retrieval", 32, "39b96b7fa52bdd2a", extended=True),
    "passage_retrieval_zh": _Task("retrieval_zh", 32, "c1e2346e245eb365"),
    "lcc": _Task("code_sim", 64, "6a1f24cf0bb83cd9", True, extended=True),
    "repobench-p": _Task("code_sim", 64, "ee9ec182ea5ffeb7", True, extended=True),
}
# mean words of a context, of characters in Chinese (Bai et al., 2023, Table 1)
_WORDS = {
    "narrativeqa": 18409, "qasper": 3619, "multifieldqa_en": 4559, "multifieldqa_zh": 6701, "hotpotqa": 9151,
    "2wikimqa": 4887, "musique": 11214, "dureader": 15768, "gov_report": 8734, "qmsum": 10614, "multi_news": 2113,
    "vcsum": 15380, "trec": 5177, "triviaqa": 8209, "samsum": 6258, "lsht": 22337, "passage_count": 11141,
    "passage_retrieval_en": 9289, "passage_retrieval_zh": 6745, "lcc": 1235, "repobench-p": 4206,
}  # fmt: skip
_CLASSES: Kind = (
    "a list of texts or null",
    lambda value: value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value)),
)


@register("longbench")
@dataclass(frozen=True, kw_only=True)
class LongBench(DataSet):
    """A task of LongBench (Bai et al., 2023, arXiv:2308.14508), or with `extended` of LongBench-E.

    Prompts are the official ones, read from the installed lm-eval and mended in white space, which a hash proves. The
    chat template is off for trec, triviaqa, samsum, lsht, lcc and repobench-p. For trec, triviaqa, samsum and lsht an
    answer ends behind its first line. lm-eval's own LongBench is another benchmark: other rows, six other prompts.

    Attributes:
        name: the task.
        extended: whether rows are those of LongBench-E (NAME_e), with a score per bucket of lengths.
        max_length: tokens of a prompt before the chat template; longer ones are cut in the middle. None for what the
            model takes.
    """

    is_task: ClassVar[bool] = False
    names: ClassVar[dict[str, str]] = {
        "narrativeqa": "Stories and scripts: questions.",
        "qasper": "Scientific articles: questions.",
        "multifieldqa_en": "Articles of many fields: questions.",
        "multifieldqa_zh": "Articles of many fields, in Chinese: questions.",
        "hotpotqa": "Passages of Wikipedia: questions that need two of them.",
        "2wikimqa": "Passages of Wikipedia: questions that need up to five.",
        "musique": "Passages of Wikipedia: questions that need up to four.",
        "dureader": "Chinese web pages: questions.",
        "gov_report": "Reports of a government: summaries.",
        "qmsum": "Minutes of meetings: summaries about a question.",
        "multi_news": "News articles about one event: summaries.",
        "vcsum": "Chinese minutes of meetings: summaries.",
        "trec": "Many examples: the type of a question.",
        "triviaqa": "Examples with passages: trivia questions.",
        "samsum": "Examples: summaries of dialogues.",
        "lsht": "Many examples: the class of a Chinese news article.",
        "passage_count": "Passages, some repeated: how many there are.",
        "passage_retrieval_en": "Thirty passages: the one that a summary is of.",
        "passage_retrieval_zh": "Chinese passages: the one that a summary is of.",
        "lcc": "A file of code: its next line.",
        "repobench-p": "Files of a repository: the next line of one.",
    }
    source: ClassVar[str] = "LongBench, github.com/THUDM/LongBench"
    licence: ClassVar[str] = "MIT (code and prompts); rows of about twenty sources with their own"
    lengths: ClassVar[str] = "1K to 64K tokens"
    scored: ClassVar[str] = "official: F1, ROUGE-L, classes, numbers or edit ratio, by task"
    needs: ClassVar[str] = "rows of data.zip, zai-org/LongBench on the hub: data=FOLDER, or download=true"
    home: ClassVar[str] = "LongBench, data.zip of zai-org/LongBench on the Hugging Face hub"
    fields: ClassVar[Mapping[str, Kind]] = {
        "input": TEXT, "context": TEXT, "answers": TEXTS, "length": WHOLE, "all_classes": _CLASSES, "_id": TEXT,
    }  # fmt: skip

    name: Name
    extended: bool = False
    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extended and not self._task.extended:
            have = ", ".join(name for name, task in _TASKS.items() if task.extended)
            raise UserError(f"extended: LongBench-E has no {self.name}, but {have}")
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"max_length: {self.max_length} is not allowed, give 2 or more tokens, or null")

    @property
    def _task(self) -> _Task:
        return _TASKS[self.name]

    @property
    def metric(self) -> str:
        return self._task.score

    @property
    def aggregate(self) -> Mapping[str, str]:
        return {self.metric: "buckets:words:4000,8000"} if self.extended else {}

    @property
    def typical(self) -> tuple[int, int, int]:
        rows = {"multifieldqa_en": 150, "lcc": 500, "repobench-p": 500}.get(self.name, 200)
        return rows, round(1.4 * _WORDS[self.name]), self.max_new_tokens or self._task.tokens

    @property
    def wording(self) -> str:
        return "longbench"

    @property
    def data_name(self) -> str:
        return f"{self.name}_e" if self.extended else self.name

    @property
    def hub(self) -> Hub:
        return Hub("zai-org/LongBench", archive="data.zip", member=f"data/{self.data_name}.jsonl")

    def available(self) -> int:
        if self.metric.endswith("_zh") and self.metric != "retrieval_zh":
            # before hours of answers that nothing could score
            required("jieba", "LongBench's Chinese tasks: jieba")
        return super().available()

    def defect(self, row: Mapping[str, Any]) -> str | None:
        instruction = prompt(self.name).partition("{context}")[0].strip()[:40]
        if "answer_prefix" in row or row["context"].startswith(instruction):
            return "is of a copy made for another tool, whose context holds the instruction; give the original rows"
        if self.metric == "classification" and not row["all_classes"]:
            return "all_classes is empty"
        marks = {"retrieval": "Paragraph ", "retrieval_zh": "段落"}
        mark = marks.get(self.metric)
        if mark and not all(mark in answer for answer in row["answers"]):
            return f"an answer has no {mark.strip()!r} with a number"
        return None

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        row, task = self.rows.rows[index], self._task
        head, tail = prompt(self.name).split("{context}")
        sample = Sample(
            context=head + row["context"],
            question=tail.replace("{input}", row["input"]),
            answer_prefix="",
            gold=tuple(row["answers"]),
            max_new_tokens=self.max_new_tokens or task.tokens,
            meta={"id": row["_id"], "row": index, "words": row["length"]},
            stop=Stop(first_line=task.first_line),
            plain=task.plain,
        )
        return fit_middle(sample, self.max_length, renderer, f"data: row {index + 1}")

    def scores(self, output: str, sample: Sample) -> dict[str, float | list[float]]:
        task, row = self._task, self.rows.rows[sample.meta["row"]]
        if task.first_line:
            output = output.lstrip("\n").split("\n")[0]
        more = {"classes": row["all_classes"]} if task.score == "classification" else {}
        return {task.score: max(SCORES[task.score](output, answer, **more) for answer in row["answers"])}

    def examples(self, count: int, words: int) -> Sequence[Mapping[str, Any]]:
        found = []
        for index in range(count):
            rng = random.Random(f"longbench/{self.name}/{index}")
            fact = made_up.fact(rng, words)
            classes = ["Number", "Person", "Place"] if self.metric == "classification" else None
            answer = {
                "classification": "Number", "retrieval": "Paragraph 2", "retrieval_zh": "段落2", "count": "3",
                "code_sim": f"    return {fact.value}",
            }.get(self.metric, fact.value)  # fmt: skip
            found.append(
                {
                    "input": fact.question, "context": fact.text, "answers": [answer],
                    "length": len(fact.text.split()), "dataset": self.name, "language": "en",
                    "all_classes": classes, "_id": f"{self.name}-{index}",
                }
            )  # fmt: skip
        return found


@cache
def prompt(name: str) -> str:
    """The official prompt of a task, with {context} and {input}.

    Raises:
        UserError: lm-eval is missing, or its text is not the official one.
    """
    text = task_file(f"longbench/{name}.yaml").get("doc_to_text")
    if not isinstance(text, str):
        raise changed(f"longbench/{name}.yaml")
    text = text.replace("{{context}}", "{context}").replace("{{question}}", "{input}")
    # lm-eval lost white space
    if name in ("triviaqa", "samsum"):
        text = text.replace("{context}\n{input}", "{context}\n\n{input}")
    elif name in ("passage_count", "passage_retrieval_en"):
        text += " "
    elif name in ("lcc", "repobench-p"):
        text += "\n"
    if hashlib.sha256(text.encode()).hexdigest()[:16] != _TASKS[name].digest:
        raise changed(f"longbench/{name}.yaml")
    return text
