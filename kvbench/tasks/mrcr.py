"""MRCR: a long conversation with alike requests, one answer of which is to be repeated."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, ClassVar

from kvbench.config.errors import UserError
from kvbench.tasks import made_up
from kvbench.tasks.base import register
from kvbench.tasks.dataset import DataSet
from kvbench.tasks.prompt import Renderer, Sample, Turn
from kvbench.tasks.rows import TEXT, WHOLE, Hub, Kind


@register("mrcr")
@dataclass(frozen=True, kw_only=True)
class Mrcr(DataSet):
    """OpenAI's MRCR (after Vodrahalli et al., 2024, arXiv:2409.12640): the whole conversation is the prompt.

    The score is difflib's ratio of output and answer, both without the prefix that the request asks for; 0 if the
    output does not begin with it.

    Attributes:
        needles: 2, 4 or 8 for the rows with so many alike requests; None for all rows.
    """

    source: ClassVar[str] = "MRCR, openai/mrcr on the Hugging Face hub"
    licence: ClassVar[str] = "MIT"
    lengths: ClassVar[str] = "4K to 1M tokens"
    scored: ClassVar[str] = "official: difflib's ratio behind a prefix"
    needs: ClassVar[str] = "rows of openai/mrcr on the hub: data=FILE, or download=true"
    home: ClassVar[str] = "MRCR, openai/mrcr on the Hugging Face hub"
    fields: ClassVar[Mapping[str, Kind]] = {
        "prompt": TEXT, "answer": TEXT, "random_string_to_prepend": TEXT, "n_needles": WHOLE,
    }  # fmt: skip

    needles: int | None = None

    @property
    def metric(self) -> str:
        return "mrcr"

    @property
    def aggregate(self) -> Mapping[str, str]:
        return {"mrcr": "by:needles"}

    @property
    def data_name(self) -> str:
        return "mrcr"

    @property
    def hub(self) -> Hub:
        return Hub("openai/mrcr", split="train")

    def defect(self, row: Mapping[str, Any]) -> str | None:
        try:
            messages = json.loads(row["prompt"])
            roles = [message["role"] for message in messages]
            texts = [message["content"] for message in messages]
        except (ValueError, TypeError, KeyError):
            return "prompt must be the JSON text of messages {role, content}"
        if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            return "prompt must have user and assistant in turns, and end with the user"
        return (
            None if all(isinstance(text, str) for text in texts) else "the content of a message must be text"
        )

    def _numbers(self) -> list[int]:
        rows = self.rows.rows
        return [n for n, row in enumerate(rows) if self.needles is None or row["n_needles"] == self.needles]

    def available(self) -> int:
        found = self._numbers()
        if not found:
            raise UserError(f"needles: {self.rows.place} has no row with {self.needles}")
        return len(found)

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        number = self._numbers()[index]
        row = self.rows.rows[number]
        texts = [message["content"] for message in json.loads(row["prompt"])]
        asked, answers = texts[::2], texts[1::2]
        earlier = tuple(
            Turn(q if n else "", "", a, "") for n, (q, a) in enumerate(zip(asked, answers, strict=False))
        )
        sample = Sample(
            context=asked[0] if earlier else "",
            question=asked[-1],
            answer_prefix="",
            gold=(row["answer"],),
            max_new_tokens=self.max_new_tokens or 1024,
            meta={"row": number, "needles": row["n_needles"]},
            earlier=earlier,
            context_known=False,
            one_prompt=True,
        )
        tokens = renderer.count(sample) + sample.max_new_tokens
        if renderer.limit is not None and tokens > renderer.limit:
            raise UserError(
                f"data: row {number + 1} has {tokens} tokens with its answer and the model takes {renderer.limit}; "
                "give shorter rows, a conversation is not cut"
            )
        return sample

    def scores(self, output: str, sample: Sample) -> dict[str, float | list[float]]:
        prefix = self.rows.rows[sample.meta["row"]]["random_string_to_prepend"]
        return {"mrcr": ratio(output, sample.gold[0], prefix)}

    def examples(self, count: int, words: int) -> Sequence[Mapping[str, Any]]:
        found = []
        for index in range(count):
            rng = random.Random(f"mrcr/{index}")
            facts = [made_up.fact(rng, max(words // 4, 1)) for _ in range(2)]
            messages = []
            for fact in facts:
                messages += [("user", "Write a note about numbers."), ("assistant", fact.text)]
            mark = f"mark{index}"
            messages.append(("user", f"Begin with {mark}, then repeat the second note about numbers."))
            found.append(
                {
                    "prompt": json.dumps([{"role": role, "content": text} for role, text in messages]),
                    "answer": mark + facts[1].text, "random_string_to_prepend": mark, "n_needles": 2,
                    "desired_msg_index": 3, "total_messages": len(messages),
                    "n_chars": sum(len(text) for _, text in messages),
                }
            )  # fmt: skip
        return found


def ratio(output: str, answer: str, prefix: str) -> float:
    """difflib's ratio of what follows the prefix in both; 0 where the output does not begin with it."""
    if not output.startswith(prefix):
        return 0.0
    return SequenceMatcher(None, output.removeprefix(prefix), answer.removeprefix(prefix)).ratio()
