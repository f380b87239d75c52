"""Tasks of the installed lm-eval that generate text: its prompts, stop strings, filters and scorers, on your rows."""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from kvbench.config.errors import UserError
from kvbench.config.text import one_line
from kvbench.tasks.base import Family, register
from kvbench.tasks.lm_eval_files import lm_eval_version, task_folder
from kvbench.tasks.patterns import ScoreError
from kvbench.tasks.prompt import Renderer, Sample
from kvbench.tasks.rows import Rows, read, required
from kvbench.tasks.stop import Stop
from kvbench.tasks.truncate import fit_middle

#: packages that loading and scoring tasks import
_PACKAGES = (
    "datasets",
    "evaluate",
    "sacrebleu",
    "word2number",
    "more_itertools",
    "dill",
    "pytablewriter",
    "sqlitedict",
)
#: folders of lm-eval's tasks that differ from the benchmark or download on import, and what to take instead
_OURS = {
    "ruler": "ruler_niah_single_1 and its like",
    "longbench": "longbench_qasper and its like",
    "longbench2": "longbench2",
}
_CONTEXTS = ("context", "input", "passage", "article", "document")
_MARK = "\u241e\u241e"
_FEWSHOT = "kvbench_fewshot"
#: lm-eval's functions that sum up rows which have scores of their own, and our rule for each
_SUMS = {"mean": "mean", "nanmean": "mean", "agg_inst_level_acc": "instances"}


@register("lm_eval")
@dataclass(frozen=True, kw_only=True)
class LmEval(Family):
    """Any task of the installed lm-eval that generates text, with its prompt, stop strings, filters and scorers.

    Few-shot examples of document i depend on `fewshot_seed` and i only, where a plain run of lm-eval draws them one
    after the other; `shared` draws once for all documents. A description stands before the prompt. Prompts that are too
    long lose their middle, where lm-eval cuts their start. What is compressed under query_agnostic ends with the
    context field, or with few-shot examples before the last question.

    Attributes:
        name: lm-eval's name of the task, or FOLDER/NAME, which is found faster.
        data: a .jsonl, .json, .parquet or .csv file of its rows, or a folder that `datasets` saved.
        num_fewshot: examples; None for the task's own number.
        fewshot_data: rows of the examples; None for those of `data`, or the examples that the task itself holds.
        fewshot_seed: of their draw.
        fewshot: own, drawn for each document; or shared.
        context: field of the long text; None for the first of context, input, passage, article and document that is
            longer than half of the prompt.
        rename: fields of the task by their names in your rows.
        until: stop strings; None for the task's.
        max_new_tokens: None for the task's, 256 where it says nothing.
        headline: the score, as `exact_match,strict-match`; None for `score` or the first metric with the first filter.
        unsafe_code: whether tasks may run that execute the model's output.
        samples: number of rows, the first ones; None for all.
    """

    seeded: ClassVar[bool] = False
    from_file: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("data", "fewshot_data")
    source: ClassVar[str] = "lm-eval 0.4.13, github.com/EleutherAI/lm-evaluation-harness"
    licence: ClassVar[str] = "MIT (lm-eval); rows with their own"
    lengths: ClassVar[str] = "of the task"
    scored: ClassVar[str] = "lm-eval's filters and metrics"
    needs: ClassVar[str] = "name=TASK of lm-eval that generates text, data=FILE with its rows"

    name: str | None = None
    data: str | None = None
    num_fewshot: int | None = None
    fewshot_data: str | None = None
    fewshot_seed: int = 1234
    fewshot: Literal["own", "shared"] = "own"
    context: str | None = None
    rename: dict[str, str] | None = None
    until: tuple[str, ...] | None = None
    headline: str | None = None
    unsafe_code: bool = False
    length: tuple[int, ...] = (0,)
    samples: int | None = None
    max_new_tokens: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            raise UserError("name: give a task of lm-eval that generates text, as gsm8k_cot")
        if self.length != (0,):
            raise UserError(f"length: {list(self.length)} is not allowed, rows are as long as they are")
        if self.data is None:
            raise UserError(
                f"data: give the rows of lm-eval's {self.name} as a .jsonl, .json, .parquet or .csv file"
            )

    @property
    def wording(self) -> str:
        return f"lm-eval {lm_eval_version()}"

    @property
    def metric(self) -> str:
        metrics, filters = self._task.config.metric_list or [], self._task._filters
        first = f"{metrics[0]['metric']},{filters[0].name}" if metrics and filters else "score"
        return self.headline or first

    @property
    def aggregate(self) -> Mapping[str, str]:
        lists = [
            metric for metric, rule in self._task.aggregation().items() if _SUMS[rule.__name__] != "mean"
        ]
        return {f"{metric},{rule.name}": "instances" for metric in lists for rule in self._task._filters}

    @cached_property
    def _rows(self) -> Rows:
        assert self.data is not None
        return read(self.data)

    @property
    def data_source(self) -> str:
        return self._rows.source

    @property
    def data_digest(self) -> str:
        folder = _file(str(self.name)).parent
        parts = [lm_eval_version(), self._rows.digest]
        if self.fewshot_data is not None:
            parts.append(read(self.fewshot_data).digest)
        for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.py"))):
            parts.append(hashlib.sha256(path.read_bytes()).hexdigest())
        return hashlib.sha256("/".join(parts).encode()).hexdigest()

    @cached_property
    def _task(self) -> Any:
        return _load(self)

    @cached_property
    def _docs(self) -> list[Any]:
        return list(self._task.eval_docs)

    def available(self) -> int:
        return len(self._docs)

    @property
    def _shots(self) -> int:
        given = self._task.config.num_fewshot if self.num_fewshot is None else self.num_fewshot
        return given or 0

    def _text(self, doc: Any, index: int) -> str:
        number = index if self.fewshot == "own" else 0
        digest = hashlib.sha256(f"{self.fewshot_seed}/{number}".encode()).digest()
        # drawing changes the generator
        self._task.set_fewshot_seed(int.from_bytes(digest[:4], "big"))
        text = self._task.fewshot_context(doc, self._shots)
        if not isinstance(text, str):
            raise UserError(f"name: {self.name} has several prompts per row, which only likelihoods compare")
        return text

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        task, doc = self._task, self._docs[index]
        text = self._text(doc, index)
        split = self._context_end(doc, text, index)
        options = task.config.generation_kwargs or {}
        until = options.get("until") or [task.config.fewshot_delimiter]
        stops = self.until if self.until is not None else ([until] if isinstance(until, str) else until)
        gold = task.doc_to_target(doc)
        sample = Sample(
            context=text if split is None else text[:split],
            question="" if split is None else text[split:],
            answer_prefix=task.doc_to_prefix(doc) or "",
            gold=tuple(map(str, gold)) if isinstance(gold, list | tuple) else (str(gold),),
            max_new_tokens=self.max_new_tokens or options.get("max_gen_toks", 256),
            meta={"row": index, "shots": self._shots},
            stop=Stop(tuple(stop for stop in stops if stop)),
            context_known=split is not None,
            shared=self._shots > 0 and self.fewshot == "shared",
        )
        return fit_middle(sample, None, renderer, f"data: row {index + 1}")

    def _context_end(self, doc: Any, text: str, index: int) -> int | None:
        """Characters of the prompt before the question; None where that cannot be told."""
        if self._shots and self.context is None:
            tail = self._task.doc_to_text(doc)
            return len(text) - len(tail) if isinstance(tail, str) and tail and text.endswith(tail) else None
        fields = [self.context] if self.context else [name for name in _CONTEXTS if name in doc]
        for field in fields:
            value = doc.get(field)
            if not isinstance(value, str) or (self.context is None and len(value) < len(text) / 2):
                continue
            head, *rest = self._text({**doc, field: _MARK}, index).split(_MARK)
            if len(rest) == 1 and text.startswith(head) and text.endswith(rest[0]) and rest[0]:
                return len(text) - len(rest[0])
        return None

    def score(self, output: str, sample: Sample) -> float:
        raise NotImplementedError

    def scores(self, output: str, sample: Sample) -> dict[str, float | list[float]]:
        from lm_eval.api.instance import Instance  # type: ignore[import-not-found]

        task, doc = self._task, self._docs[sample.meta["row"]]
        found: dict[str, float | list[float]] = {}
        for rule in task._filters:
            instance = Instance("generate_until", doc, ("", {}), 0)
            instance.resps = [output]
            rule.apply([instance])
            for metric, value in task.process_results(doc, [instance.filtered_resps[rule.name]]).items():
                numbers = [float(one) for one in value] if isinstance(value, list | tuple) else float(value)
                found[f"{metric},{rule.name}"] = numbers
        if "score" not in found and self.metric not in found:
            raise ScoreError(f"headline: {self.metric} is not one of {'; '.join(found)}")
        headline = found.get(self.metric)
        if isinstance(headline, list) or headline is None or not 0 <= headline <= 1:
            raise ScoreError(f"headline: {self.metric} gave {headline}, a score is a number from 0 to 1")
        return found


@cache
def _file(name: str) -> Path:
    """The YAML file of a task.

    Raises:
        UserError: there is none, or kvbench has the task itself.
    """
    folder, _, last = name.rpartition("/")
    root = task_folder()
    wanted = re.compile(rf"^task:\s*[\"']?{re.escape(last)}[\"']?\s*(#.*)?$", re.MULTILINE)
    places = sorted((root / folder).glob("*.yaml") if folder else root.rglob("*.yaml"))
    found = next(
        (path for path in places if wanted.search(path.read_text(encoding="utf-8", errors="replace"))), None
    )
    if found is None:
        grouped = re.compile(rf"^group:\s*[\"']?{re.escape(last)}[\"']?\s*(#.*)?$", re.MULTILINE)
        if any(grouped.search(path.read_text(encoding="utf-8", errors="replace")) for path in places):
            raise UserError(
                f"name: {last} is a group of lm-eval; give one of its tasks, and an entry of its own for each"
            )
        raise UserError(
            f"name: lm-eval {lm_eval_version()} has no task {last}{f' in {folder}' if folder else ''}"
        )
    top = found.relative_to(root).parts[0]
    if top in _OURS:
        raise UserError(f"name: {last} of lm-eval is not the benchmark of that name; take {_OURS[top]}")
    if top == "ifeval":
        _check_punkt()
    return found


def _check_punkt() -> None:
    required("nltk", "lm_eval: ifeval")
    import nltk  # type: ignore[import-not-found]

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        raise UserError(
            "name: ifeval needs nltk's punkt_tab on disk and would download it: python -m nltk.downloader punkt_tab"
        ) from None


def _unsafe(file: Path) -> bool:
    """Whether a task's YAML, or one that it includes, says that the model's output is run."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if re.search(r"^unsafe_code:\s*true\b", text, re.MULTILINE | re.IGNORECASE):
        return True
    included = re.findall(r"^include:\s*[\"']?([^\s\"'#]+)", text, re.MULTILINE)
    return any(_unsafe(path) for name in included if (path := file.parent / name).is_file() and path != file)


class _Splits(dict[str, Any]):
    """The rows of every split that a task may name, and those of examples under a name of their own."""

    def __missing__(self, name: str) -> Any:
        return self["rows"]


def _load(config: LmEval) -> Any:
    """The task object on the user's rows; nothing is downloaded.

    Raises:
        UserError: a package is missing, the task does not generate text, or the rows do not fit.
    """
    name = str(config.name).rpartition("/")[2]
    file = _file(str(config.name))
    folder = file.parent
    # before anything is imported: such tasks fetch what runs the code
    if not config.unsafe_code and _unsafe(file):
        raise UserError(f"name: {name} runs code that the model writes; unsafe_code=true allows that")
    for package in _PACKAGES:
        required(package, "lm_eval: its tasks")
    with _quiet():
        from datasets import Dataset  # type: ignore[import-not-found]
        from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

        renamed = config.rename or {}

        def rows(path: str) -> Any:
            return Dataset.from_list(
                [{renamed.get(key, key): value for key, value in row.items()} for row in read(path).rows]
            )

        splits = _Splits(rows=rows(str(config.data)))
        changes: dict[str, Any] = {
            "custom_dataset": lambda **_: splits,
            "dataset_path": "",
            "dataset_name": None,
        }
        if config.fewshot_data is not None:
            splits[_FEWSHOT] = rows(config.fewshot_data)
            changes["fewshot_split"] = _FEWSHOT
        if config.num_fewshot is not None:
            changes["num_fewshot"] = config.num_fewshot
        try:
            manager = TaskManager(include_defaults=False, include_path=str(folder))
            entry: Any = {"group": "kvbench", "task": [{"task": name, **changes}]}
            task = manager.load([entry])["tasks"][name]
        except Exception as error:
            columns = ", ".join(splits["rows"].column_names)
            raise UserError(
                f"data: {config.data} does not fit lm-eval's {name} ({type(error).__name__}: {one_line(error)[:160]}); "
                f"its rows have {columns}; rename={{YOURS: ITS}} gives fields other names"
            ) from None
    if task.OUTPUT_TYPE != "generate_until":
        raise UserError(
            f"name: {name} is scored by {task.OUTPUT_TYPE}, not by generated text; take task=[choices]"
        )
    sums = {metric: getattr(rule, "__name__", str(rule)) for metric, rule in task.aggregation().items()}
    if other := [metric for metric, rule in sums.items() if rule not in _SUMS]:
        raise UserError(
            f"name: {name} sums up {other[0]} by {sums[other[0]]} over all rows, a row has no score of its own; kvbench"
            f" compares rows and takes tasks with {', '.join(_SUMS)}"
        )
    return task


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's remarks on tasks whose rows come from a function."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def examples(count: int) -> Sequence[Mapping[str, Any]]:
    """Made-up rows of GSM8K's form, for trying."""
    rng = random.Random("lm_eval")
    return [
        {"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"}
        for n in (rng.randrange(2, 90) for _ in range(count))
    ]
