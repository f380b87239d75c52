"""What a task is: a family's parameters, the samples made from them, and the score of an answer."""

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

    The fields of a subclass are its configuration keys; their annotations say which values are allowed.
    `version` is raised whenever the same parameters would give other prompts or other scores.

    Attributes:
        length: requested lengths in tokens, prompt and answer together.
        samples: number of samples per length and seed.
        max_new_tokens: tokens that are generated for an answer.
        is_task: whether `task=[NAME]` takes the family's name; false where files of conf/task name its settings.
        seeded: whether other seeds give other samples.
        paths: fields that name files; what counts for a cell's identity is the content of these files.
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
        """Makes sample number `index`; nothing but the arguments and the parameters may matter."""

    @abstractmethod
    def score(self, output: str, sample: Sample) -> float:
        """Scores the generated text between 0 and 1."""

    def available(self) -> int | None:
        """Number of samples there are, None where they are generated without end."""
        return None


@dataclass(frozen=True)
class Task:
    """A task of an experiment: its label there and the family's parameters."""

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
        """Whose sentences the prompt uses, "ruler" or "own"; None where the user wrote them."""
        return getattr(self.config, "wording", None)

    def identity(self) -> dict[str, Any]:
        """Everything of the task that can change a number, apart from the sample itself and without paths."""
        skipped = {"length", "samples", *self.config.paths}
        values = {f.name: getattr(self.config, f.name) for f in fields(self.config) if f.name not in skipped}
        return {"family": self.family, "version": self.version, "metric": self.metric, **values}

    def samples(self, n: int, seed: int, length: int, renderer: Renderer) -> list[Sample]:
        """Makes samples 0 .. n-1, fewer where there are fewer.

        Args:
            n: how many; sample i does not depend on it.
            seed: other seeds give other samples where `config.seeded`.
            length: prompt tokens + max_new_tokens, met between 90 and 100 %.
            renderer: makes the prompt with the model's own tokenizer and template.

        Raises:
            UserError: the length cannot be met or the model does not take it, a file is missing or wrong.
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
        """Scores the generated text, without the prompt and the answer prefix, between 0 and 1."""
        return self.config.score(output, sample)


def register(name: str) -> Callable[[type[F]], type[F]]:
    """Class decorator that makes a family known by `name`.

    A class of the same name replaces the earlier one, so that a notebook cell can be run again.
    """

    def add(cls: type[F]) -> type[F]:
        cls.family = name
        _FAMILIES[name] = cls
        return cls

    return add


def registered() -> Mapping[str, type[Family]]:
    """All families that were imported so far, by name."""
    return dict(sorted(_FAMILIES.items()))


def stream(*parts: object) -> random.Random:
    """Random numbers of their own for every combination of parts (seed, sample index, purpose ...)."""
    return random.Random("/".join(map(str, parts)))
