"""RULER's questions: documents of SQuAD or HotpotQA, of which one or two hold the answer."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from kvbench.config.errors import UserError
from kvbench.config.text import one_line
from kvbench.tasks.base import register, stream
from kvbench.tasks.length import fit
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.ruler import Ruler
from kvbench.tasks.scorers import substring_any
from kvbench.tasks.wording import Part

_CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class _Question:
    """A question, its answers, and the numbers of its documents and of those that stand beside them."""

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    beside: tuple[int, ...]


@register("ruler_qa")
@dataclass(frozen=True, kw_only=True)
class RulerQA(Ruler):
    """RULER's qa_1 (SQuAD 2.0) and qa_2 (HotpotQA): as many documents as fit, in random order, and a question.

    The file is the original one: dev-v2.0.json, or hotpot_dev_distractor_v1.json. Paragraphs of the question's own
    article come first. An answer counts if one of the right ones stands in it, as NVIDIA scores; lm-eval averages over
    them, kvpress cleans the output otherwise.

    Attributes:
        name: 1 or 2.
        data: the file.
    """

    is_task: ClassVar[bool] = False
    names: ClassVar[dict[str, str]] = {
        "1": "Documents of SQuAD: a question about one of them.",
        "2": "Documents of HotpotQA: a question that needs two of them.",
    }
    from_file: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("data",)
    licence: ClassVar[str] = "Apache-2.0 (sentences, from lm-eval); CC BY-SA 4.0 (documents)"
    scored: ClassVar[str] = "1 if one of the answers stands in the output"
    needs: ClassVar[str] = "data=FILE: dev-v2.0.json of SQuAD, or hotpot_dev_distractor_v1.json of HotpotQA"

    name: Literal["1", "2"]
    data: str | None = None
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is None:
            where = {
                "1": "SQuAD 2.0 (rajpurkar.github.io/SQuAD-explorer, CC BY-SA 4.0): data=dev-v2.0.json",
                "2": "HotpotQA (hotpotqa.github.io, CC BY-SA 4.0): data=hotpot_dev_distractor_v1.json",
            }
            raise UserError(f"data: give the file of {where[self.name]}")

    @property
    def metric(self) -> str:
        return "string_match_part"

    @property
    def part(self) -> Part:
        return "qa"

    @property
    def data_digest(self) -> str:
        return self._file()[2]

    @property
    def data_source(self) -> str:
        return Path(str(self.data)).name

    def available(self) -> int:
        return len(self._file()[0])

    def _file(self) -> tuple[list[_Question], list[str], str]:
        assert self.data is not None
        try:
            path = Path(self.data).expanduser()
            stat = path.stat()
            return _read(path, self.name, stat.st_mtime_ns, stat.st_size)
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError, RecursionError) as error:
            raise UserError(f"data: {self.data} cannot be read ({one_line(error)})") from None

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        questions, documents, _ = self._file()
        asked = questions[stream("ruler_qa", seed).sample(range(len(questions)), len(questions))[index]]
        rng = stream("ruler_qa", seed, index)
        own = set(asked.documents)
        beside = [number for number in asked.beside if number not in own]
        rest = [number for number in range(len(documents)) if number not in own and number not in set(beside)]
        order = [*asked.documents, *rng.sample(beside, len(beside)), *rng.sample(rest, len(rest))]
        meta = {"haystack": {"1": "squad", "2": "hotpotqa"}[self.name]}

        def build(units: int) -> Sample:
            # where more are asked for than there are, the collection is repeated, as RULER does
            chosen = [order[number % len(order)] for number in range(units)]
            stream("ruler_qa", seed, index, "order").shuffle(chosen)
            form = self.sentences.needle
            text = "\n\n".join(form.format(i=n, document=documents[d]) for n, d in enumerate(chosen, start=1))
            return self.ask(text, asked.answers, meta, query=asked.text)

        return fit(build, renderer, length, len(asked.documents))

    def score(self, output: str, sample: Sample) -> float:
        return substring_any(_CONTROL.sub("\n", output.strip()).strip(), sample.gold)


@lru_cache(maxsize=2)
def _read(path: Path, name: str, mtime_ns: int, size: int) -> tuple[list[_Question], list[str], str]:
    data = path.read_bytes()
    content = json.loads(data)
    try:
        questions, documents = (_squad if name == "1" else _hotpotqa)(content)
    except (KeyError, TypeError, IndexError, AttributeError):
        wanted = {"1": "SQuAD 2.0", "2": "HotpotQA's distractor setting"}[name]
        raise UserError(f"data: {path} is not a file of {wanted}") from None
    if not questions:
        raise UserError(f"data: {path} has no question with an answer")
    return questions, documents, hashlib.sha256(data).hexdigest()


def _squad(content: Any) -> tuple[list[_Question], list[str]]:
    articles = [article["paragraphs"] for article in content["data"]]
    documents = sorted({paragraph["context"] for article in articles for paragraph in article})
    number = {text: n for n, text in enumerate(documents)}
    return [
        _Question(
            asked["question"],
            tuple(answer["text"] for answer in asked["answers"]),
            (number[paragraph["context"]],),
            tuple(dict.fromkeys(number[other["context"]] for other in article)),
        )
        for article in articles
        for paragraph in article
        for asked in paragraph["qas"]
        if not asked["is_impossible"]
    ], documents


def _hotpotqa(content: Any) -> tuple[list[_Question], list[str]]:
    def texts(row: Any) -> list[str]:
        return [f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]]

    documents = sorted({text for row in content for text in texts(row)})
    number = {text: n for n, text in enumerate(documents)}
    return [
        _Question(
            row["question"], (row["answer"],), tuple(dict.fromkeys(number[text] for text in texts(row))), ()
        )
        for row in content
    ], documents
