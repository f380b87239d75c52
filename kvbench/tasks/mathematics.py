"""MATH-500 and AIME: long answers, drawn several times if wanted, judged by math-verify."""

from __future__ import annotations

import importlib.util
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from kvbench.config.errors import UserError
from kvbench.tasks.base import register
from kvbench.tasks.dataset import DataSet
from kvbench.tasks.lm_eval_files import changed, task_folder
from kvbench.tasks.prompt import Renderer, Sample, Sampling
from kvbench.tasks.rows import TEXT, Hub, Kind, required

_ANSWER: Kind = (
    "text or a whole number",
    lambda value: isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip() != "",
)
_REQUEST = "\n\nReason step by step, and write the final answer in \\boxed{}."


@dataclass(frozen=True)
class _Set:
    """A data set.

    Attributes:
        hub: where it is.
        problem: field of the problem.
        answer: field of the answer.
        facts: fields that go into meta, by their names there.
    """

    hub: Hub
    problem: str
    answer: str
    facts: Mapping[str, str]


_SETS = {
    "500": _Set(
        Hub("HuggingFaceH4/MATH-500"),
        "problem",
        "answer",
        {"subject": "subject", "level": "level", "unique_id": "id"},
    ),
    "aime24": _Set(Hub("Maxwell-Jia/AIME_2024", split="train"), "Problem", "Answer", {"ID": "id"}),
    "aime25": _Set(Hub("math-ai/aime25"), "problem", "answer", {}),
}


@register("math")
@dataclass(frozen=True, kw_only=True)
class Mathematics(DataSet):
    """Competition problems with long answers: MATH-500 (Lightman et al., 2023, arXiv:2305.20050), AIME 2024 and 2025.

    `math_verify` is 1 where the package of that name takes an answer for equal to the gold one. AIME also has
    `lm_eval`, lm-eval's rule: it needs a box or dollar signs and compares text. With a temperature every problem is
    answered `repeats` times; the random numbers depend on seed, problem and repeat and not on the method. Thirty
    problems give intervals of 17 points to either side.

    Attributes:
        name: the data set.
        repeats: answers per problem; more than one needs a temperature.
        temperature: 0 for the likeliest tokens.
        top_p: probability of the likeliest tokens that are drawn from.
    """

    is_task: ClassVar[bool] = False
    names: ClassVar[dict[str, str]] = {
        "500": "MATH-500: competition problems, answered at length.",
        "aime24": "AIME 2024: thirty problems with whole numbers as answers.",
        "aime25": "AIME 2025: thirty problems with whole numbers as answers.",
    }
    source: ClassVar[str] = "MATH-500 and AIME, on the Hugging Face hub"
    licence: ClassVar[str] = "MIT (MATH); AIME: problems of the MAA"
    lengths: ClassVar[str] = "100 to 500 tokens, answers of thousands"
    scored: ClassVar[str] = "math-verify; avg@n and pass@k of repeats"
    needs: ClassVar[str] = (
        "rows of HuggingFaceH4/MATH-500, Maxwell-Jia/AIME_2024 or math-ai/aime25: data=FILE, or download=true"
    )

    name: Literal["500", "aime24", "aime25"]
    repeats: int = 1
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repeats < 1:
            raise UserError(f"repeats: {self.repeats} is not allowed, give 1 or more")
        if self.temperature < 0:
            raise UserError(f"temperature: {self.temperature} is not allowed, give 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: {self.top_p} is not allowed, give more than 0 and at most 1")
        if self.repeats > 1 and not self.temperature:
            raise UserError(
                f"repeats: {self.repeats} answers at temperature 0 are all the same; give a temperature"
            )

    @property
    def _set(self) -> _Set:
        return _SETS[self.name]

    @property
    def home(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"{self._set.hub.name} on the Hugging Face hub"

    @property
    def fields(self) -> Mapping[str, Kind]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {self._set.problem: TEXT, self._set.answer: _ANSWER}

    @property
    def seeded(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether answers are drawn, so that a seed changes them."""
        return self.temperature > 0

    @property
    def metric(self) -> str:
        return "math_verify"

    @property
    def aggregate(self) -> Mapping[str, str]:
        return {"math_verify": "pass@k"} if self.repeats > 1 else {}

    @property
    def wording(self) -> str:
        return "own"

    @property
    def data_name(self) -> str:
        return {"500": "math500"}.get(self.name, self.name)

    @property
    def hub(self) -> Hub:
        return self._set.hub

    def available(self) -> int:
        # before hours of answers that nothing could score
        required("math_verify", f"math_{self.name}: its scorer")
        return super().available() * self.repeats

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        document, repeat = divmod(index, self.repeats)
        row, names = self.rows.rows[document], self._set
        facts = {known: row[field] for field, known in names.facts.items() if field in row}
        drawn = {"document": document, "repeat": repeat} if self.temperature else {}
        sample = Sample(
            context=row[names.problem],
            question=_REQUEST,
            answer_prefix="",
            gold=(str(row[names.answer]).strip(),),
            max_new_tokens=self.max_new_tokens or (4096 if self.name == "500" else 32768),
            meta={"row": document, **facts, **drawn},
            # the problem is the question
            context_known=False,
            sampling=Sampling(self.temperature, self.top_p, f"{seed}/{document}/{repeat}")
            if self.temperature
            else None,
            shared=self.repeats > 1,
        )
        tokens = renderer.count(sample) + sample.max_new_tokens
        if renderer.limit is not None and tokens > renderer.limit:
            raise UserError(
                f"max_new_tokens: {sample.max_new_tokens} are too many, data: row {document + 1} then has {tokens} "
                f"tokens and the model takes {renderer.limit}"
            )
        return sample

    def scores(self, output: str, sample: Sample) -> dict[str, float | list[float]]:
        (gold,) = sample.gold
        found: dict[str, float | list[float]] = {"math_verify": verified(output, gold)}
        if self.name != "500":
            found["lm_eval"] = float(_lm_eval()({"answer": gold}, [output])["exact_match"])
        return found

    def examples(self, count: int, words: int) -> Sequence[Mapping[str, Any]]:
        found = []
        for index in range(count):
            rng = random.Random(f"math/{self.name}/{index}")
            first, second = rng.randrange(2, 20), rng.randrange(2, 20)
            row: dict[str, Any] = {
                self._set.problem: f"Find $x$ if $x - {first} = {second}$.",
                self._set.answer: str(first + second),
            }
            if self.name == "500":
                row |= {
                    "solution": f"$x = {second} + {first} = \\boxed{{{first + second}}}$", "subject": "Algebra",
                    "level": 1, "unique_id": f"made-up/{index}.json",
                }  # fmt: skip
            elif self.name == "aime24":
                row |= {"ID": f"made-up-{index}", "Solution": ""}
            found.append(row)
        return found


def verified(output: str, gold: str) -> float:
    """1 if math-verify takes the answer in a text for equal to the gold one.

    Its time limits need signals, which only the main thread gets; elsewhere there are none.
    """
    from math_verify import parse, verify  # type: ignore[import-not-found]

    limits: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    if threading.current_thread() is not threading.main_thread():
        limits = ({"parsing_timeout": None}, {"timeout_seconds": None})
    wrapped = gold if gold.startswith("$") and gold.endswith("$") else f"${gold}$"
    return float(verify(parse(wrapped, **limits[0]), parse(output, **limits[0]), **limits[1]))


@cache
def _lm_eval() -> Callable[[Mapping[str, Any], Sequence[str]], Mapping[str, float]]:
    """lm-eval's rule for AIME, from its file: the package is not imported."""
    path = task_folder() / "aime" / "utils.py"
    spec = importlib.util.spec_from_file_location("kvbench_lm_eval_aime", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise changed("aime/utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.process_results
