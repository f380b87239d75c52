"""The contract of a task: parameters of a family, samples made from them, scores of answers."""

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

from kvbench.config.errors import UserError
from kvbench.tasks.patterns import ScoreError
from kvbench.tasks.prompt import Prompt, Renderer, Sample

F = TypeVar("F", bound="Family")
_FAMILIES: dict[str, type["Family"]] = {}


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """Parameters of one kind of task, and how its samples are made and scored.

    The fields of a subclass are its configuration keys, and their annotations define the allowed values.

    Attributes:
        length: requested lengths in tokens, prompt and answer together.
        samples: number of samples per length and seed; None for all, where a file has a number of them.
        max_new_tokens: maximum length of an answer.
        version: raised whenever the same parameters would give other prompts or other scores.
        is_task: whether the family's name is an option of `task=[NAME]`; false if only files of conf/task are.
        seeded: whether samples depend on the seed.
        from_file: whether the samples are those of a file; their number is the file's, and `length` is a maximum.
        paths: fields that name files; the content of these files, not their path, identifies a cell.
        unit: what `length` counts, tokens of prompt and answer, or words of a text.
        source: where task and score come from, for listings.
        licence: of what it needs from there.
        lengths: of its prompts.
        scored: its scores in a few words.
        needs: data that the user brings, and how to get it.
    """

    family: ClassVar[str]
    version: ClassVar[int] = 1
    is_task: ClassVar[bool] = True
    seeded: ClassVar[bool] = True
    from_file: ClassVar[bool] = False
    paths: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "tokens"
    source: ClassVar[str] = "own"
    licence: ClassVar[str] = "-"
    lengths: ClassVar[str] = "any (generated)"
    scored: ClassVar[str] = ""
    needs: ClassVar[str] = "nothing"

    length: tuple[int, ...] = (2048,)
    samples: int | None = 20
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens"):
            value = getattr(self, name)
            if value is None and not self.from_file:
                raise UserError(f"{name}: null is not allowed, give a positive number")
            if value is not None and value < 1:
                raise UserError(f"{name}: {value} is not allowed, give a positive number")
        if not self.length or min(self.length) < 0:
            raise UserError(f"length: {list(self.length)} is not allowed, give 0 or numbers of tokens")
        if len(set(self.length)) < len(self.length):
            raise UserError(f"length: {list(self.length)} is not allowed, give each only once")

    @property
    @abstractmethod
    def metric(self) -> str:
        """Name of the score."""

    @property
    def scorer_version(self) -> int:
        """Raised when the scorer would give another score, where a scorer has a version of its own."""
        return 1

    @property
    def aggregate(self) -> Mapping[str, str]:
        """How metrics of `scores` are summed up over samples, where that is no mean; see report/metrics.py."""
        return {}

    @property
    def data_digest(self) -> str | None:
        """SHA-256 of the rows that samples are made from; None where the prompts say it all."""
        return None

    @property
    def data_source(self) -> str | None:
        """Name of their file, or name and commit of a data set of the hub."""
        return None

    @property
    def typical(self) -> tuple[int, int, int] | None:
        """Samples, tokens of a prompt and of an answer in the published data, for modelled times; None if unknown."""
        return None

    def tokens(self, length: int) -> int:
        """Tokens of prompt and answer of a length, for modelled times."""
        return length

    @abstractmethod
    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        """Make sample number `index`; a function of the arguments and the parameters only."""

    @abstractmethod
    def score(self, output: str, sample: Sample) -> float:
        """Score of the generated text, between 0 and 1."""

    def scores(self, output: str, sample: Sample) -> dict[str, float | list[float]]:
        """Scores by metric, the one named `metric` among them; empty where there is only `score`.

        A list has a value per part of the sample, as IFEval's instructions.
        """
        return {}

    def judged(
        self, log_probs: Sequence[Sequence[float]], sample: Sample
    ) -> tuple[str, dict[str, float | list[float]]]:
        """Of a sample with `continuations`: the text that stands for its answer, and scores as `scores` gives them.

        Args:
            log_probs: natural logarithms by text and token, each given all before it.
            sample: the sample.
        """
        raise NotImplementedError

    def available(self) -> int | None:
        """Number of available samples; None if unlimited, or where it depends on the tokenizer."""
        return None

    def count(self, length: int, renderer: Renderer) -> int | None:
        """Number of available samples of a length for a tokenizer; None if unlimited."""
        return self.available()


@dataclass(frozen=True)
class Task:
    """A task of an experiment: its label and the family's parameters."""

    label: str
    config: Family

    @property
    def max_new_tokens(self) -> int:
        return self.config.max_new_tokens

    @property
    def family(self) -> str:
        return self.config.family

    @property
    def version(self) -> int:
        """Version of the family, raised by that of the scorer."""
        return self.config.version + self.config.scorer_version - 1

    @property
    def metric(self) -> str:
        return self.config.metric

    @property
    def wording(self) -> str | None:
        """Source of the prompt's sentences, "ruler" or "own"; None if they are the user's."""
        return getattr(self.config, "wording", None)

    def identity(self, length: int = 0) -> dict[str, Any]:
        """All settings of the task that can change a number, except the sample itself and paths.

        Args:
            length: of the samples. A prompt shows the length that it fills, not the one that it does not exceed.
        """
        skipped = {"length", "samples", *self.config.paths}
        values = {f.name: getattr(self.config, f.name) for f in fields(self.config) if f.name not in skipped}
        most = {"length": length} if self.config.from_file and length else {}
        digest = self.config.data_digest
        data = {"data": digest} if digest is not None else {}
        return {
            "family": self.family,
            "version": self.version,
            "metric": self.metric,
            **values,
            **most,
            **data,
        }

    def wanted(self, limit: int | None) -> int | None:
        """Number of samples per length and seed, at most `limit`; None for all of a file."""
        given = [n for n in (self.config.samples, limit) if n is not None]
        return min(given, default=None)

    def left_out(self, n: int | None) -> int | None:
        """Number of samples in the file, if there are more than the first n; otherwise None."""
        available = self._available()
        return available if n is not None and available is not None and n < available else None

    def prompts(
        self, n: int | None, seed: int, length: int, renderer: Renderer
    ) -> Iterator[tuple[Sample, Prompt]]:
        """Make and render samples; arguments as for `samples`.

        A sample equal to an earlier one, as a line that a file has twice, is told apart from it by `repeat`.
        """
        seen: Counter[str] = Counter()
        for index in range(self.count(n, length, renderer)):
            sample = self.sample(index, seed, length, renderer)
            prompt = renderer.render(sample)
            seen[prompt.hash] += 1
            if (repeat := seen[prompt.hash] - 1) > 0:
                sample = replace(sample, repeat=repeat)
                prompt = renderer.render(sample)
            yield sample, prompt

    def samples(self, n: int | None, seed: int, length: int, renderer: Renderer) -> list[Sample]:
        """Make samples 0 .. n-1, or as many as are available.

        Args:
            n: number of samples, None for all that are available; sample i does not depend on it.
            seed: changes the samples if `config.seeded`.
            length: prompt tokens + max_new_tokens, met between 90 and 100 %.
            renderer: renders prompts with the model's tokenizer and chat template.

        Raises:
            UserError: the length cannot be met or exceeds the model's, or a file is missing or invalid.
        """
        return [self.sample(i, seed, length, renderer) for i in range(self.count(n, length, renderer))]

    def count(self, n: int | None, length: int, renderer: Renderer) -> int:
        """Number of samples that `samples` makes.

        Raises:
            UserError: the length exceeds the model's, or a file is missing or invalid.
        """
        most = renderer.limit if self.config.unit == "tokens" else None
        if most is not None and length > most:
            raise UserError(
                f"task.{self.label}.length: {length} is beyond the model's {most} positions or window"
            )
        try:
            available = self.config.count(length, renderer)
        except UserError as error:
            raise UserError(f"task.{self.label}.{error}") from None
        return min(k for k in (n, available) if k is not None)

    def sample(self, index: int, seed: int, length: int, renderer: Renderer, repeat: int = 0) -> Sample:
        """One of `samples`.

        Args:
            index: its number.
            seed: see `samples`.
            length: see `samples`.
            renderer: see `samples`.
            repeat: see `Sample`.

        Raises:
            UserError: as there.
        """
        try:
            sample = self.config.sample(index, seed, length, renderer)
        except UserError as error:
            raise UserError(f"task.{self.label}.{error}") from None
        return replace(sample, repeat=repeat) if repeat else sample

    def _available(self) -> int | None:
        try:
            return self.config.available()
        except UserError as error:
            raise UserError(f"task.{self.label}.{error}") from None

    def score(self, output: str, sample: Sample) -> float:
        """The first of `scores`."""
        return self.scores(output, sample)[0]

    def scores(self, output: str, sample: Sample) -> tuple[float, dict[str, float | list[float]]]:
        """Score of the generated text, without prompt and answer prefix, between 0 and 1, and those by metric, if any.

        Raises:
            ScoreError: the text cannot be scored, for example not in time.
        """
        try:
            found = self.config.scores(output, sample)
            headline = found[self.metric] if found else self.config.score(output, sample)
            assert not isinstance(headline, list)
            return headline, found
        except ScoreError as error:
            raise ScoreError(f"task.{self.label}.{error}") from None

    def judged(
        self, log_probs: Sequence[Sequence[float]], sample: Sample
    ) -> tuple[str, float, dict[str, float | list[float]]]:
        """The text that stands for the answer, its score, and scores by metric; see `Family.judged`."""
        text, found = self.config.judged(log_probs, sample)
        headline = found[self.metric]
        assert not isinstance(headline, list)
        return text, headline, found


def refuse_twins(prompts: Iterable[tuple[str, str, Hashable]]) -> None:
    """Refuse prompts that would share a row of the store.

    Args:
        prompts: label of the task, name of the prompt, and all that its row's id is made of.
    """
    first: dict[Hashable, str] = {}
    for label, name, key in prompts:
        if key in first:
            raise UserError(
                f"task.{label}: {name} is the same prompt as {first[key]}, it would be stored once; leave one of the "
                "two lengths or tasks out"
            )
        first[key] = name


def register(name: str) -> Callable[[type[F]], type[F]]:
    """Class decorator that registers a family under `name`.

    A later class of the same name replaces it, so that a notebook cell can be rerun.
    """

    def add(cls: type[F]) -> type[F]:
        cls.family = name
        _FAMILIES[name] = cls
        return cls

    return add


def registered() -> Mapping[str, type[Family]]:
    """All families imported so far, by name."""
    return dict(sorted(_FAMILIES.items()))


def stream(*parts: object) -> random.Random:
    """Independent random numbers for each combination of parts (seed, sample index, purpose ...)."""
    return random.Random("/".join(map(str, parts)))
