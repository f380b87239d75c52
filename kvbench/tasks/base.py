"""The contract of a task: parameters of a family, samples made from them, scores of answers."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from kvbench.config.errors import UserError
from kvbench.tasks.prompt import Renderer, Sample

F = TypeVar("F", bound="Family")
_FAMILIES: dict[str, type["Family"]] = {}


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """Parameters of one kind of task, and how its samples are made and scored.

    The fields of a subclass are its configuration keys, and their annotations define the allowed values.

    Attributes:
        length: requested lengths in tokens, prompt and answer together.
        samples: number of samples per length and seed.
        max_new_tokens: maximum length of an answer.
        version: raised whenever the same parameters would give other prompts or other scores.
        is_task: whether the family's name is an option of `task=[NAME]`; false if only files of conf/task are.
        seeded: whether samples depend on the seed.
        paths: fields that name files; the content of these files, not their path, identifies a cell.
    """

    family: ClassVar[str]
    version: ClassVar[int] = 1
    is_task: ClassVar[bool] = True
    seeded: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ()

    length: tuple[int, ...] = (2048,)
    samples: int = 20
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not allowed, give a positive number")

    @property
    @abstractmethod
    def metric(self) -> str:
        """Name of the score."""

    @abstractmethod
    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        """Make sample number `index`; a function of the arguments and the parameters only."""

    @abstractmethod
    def score(self, output: str, sample: Sample) -> float:
        """Score of the generated text, between 0 and 1."""

    def available(self) -> int | None:
        """Number of available samples; None if unlimited."""
        return None


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
        return self.config.version

    @property
    def metric(self) -> str:
        return self.config.metric

    @property
    def wording(self) -> str | None:
        """Source of the prompt's sentences, "ruler" or "own"; None if they are the user's."""
        return getattr(self.config, "wording", None)

    def identity(self) -> dict[str, Any]:
        """All settings of the task that can change a number, except the sample itself and paths."""
        skipped = {"length", "samples", *self.config.paths}
        values = {f.name: getattr(self.config, f.name) for f in fields(self.config) if f.name not in skipped}
        return {"family": self.family, "version": self.version, "metric": self.metric, **values}

    def samples(self, n: int, seed: int, length: int, renderer: Renderer) -> list[Sample]:
        """Make samples 0 .. n-1, or as many as are available.

        Args:
            n: number of samples; sample i does not depend on it.
            seed: changes the samples if `config.seeded`.
            length: prompt tokens + max_new_tokens, met between 90 and 100 %.
            renderer: renders prompts with the model's tokenizer and chat template.

        Raises:
            UserError: the length cannot be met or exceeds the model's, or a file is missing or invalid.
        """
        if renderer.limit is not None and length > renderer.limit:
            raise UserError(
                f"task.{self.label}.length: {length} is beyond the model's {renderer.limit} positions or window"
            )
        try:
            available = self.config.available()
            count = n if available is None else min(n, available)
            return [self.config.sample(i, seed, length, renderer) for i in range(count)]
        except UserError as error:
            raise UserError(f"task.{self.label}.{error}") from None

    def score(self, output: str, sample: Sample) -> float:
        """Score of the generated text, without prompt and answer prefix, between 0 and 1."""
        return self.config.score(output, sample)


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
