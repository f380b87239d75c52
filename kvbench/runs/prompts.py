"""What a plan needs to know of prompts, kept in the run's folder, so that a resume renders none of them again.

A file of `prompts/` holds the prompts of one task, length and seed. Its name is a hash of all that they depend on. If
it is missing or damaged, the prompts are rendered; and what was kept is compared with the prompt when it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import kvbench.tasks
from kvbench.config.errors import UserError
from kvbench.config.files import write
from kvbench.config.numbers import read_json
from kvbench.runs.store import digest
from kvbench.tasks import Prompt, Renderer, Sample, Task

#: version of the form of the files
FORM = 1
#: packages whose code or texts prompts are made with
_PACKAGES = ("jinja2", "lm-eval", "tokenizers", "transformers", "wonderwords")


@dataclass(frozen=True)
class PlannedPrompt:
    """A prompt as far as a plan needs it.

    Attributes:
        hash: see `Prompt`.
        max_new_tokens: tokens to generate.
        repeat: see `Sample`.
        turn_start: see `Prompt`.
        later: whether it has earlier turns, prompts of their own.
        context_known: see `Sample`.
        stop: identity of what ends the answer, None for nothing.
        sampling: how tokens are drawn, None for the likeliest.
        continuations: texts whose log probabilities are measured instead of an answer.
    """

    hash: str
    max_new_tokens: int
    repeat: int
    turn_start: int | None
    later: bool
    context_known: bool
    stop: dict[str, Any] | None
    sampling: dict[str, Any] | None
    continuations: list[Any]

    @classmethod
    def of(cls, sample: Sample, prompt: Prompt) -> PlannedPrompt:
        """Of a rendered sample."""
        return cls(
            prompt.hash,
            sample.max_new_tokens,
            sample.repeat,
            prompt.turn_start,
            bool(sample.earlier) and not sample.one_prompt,
            sample.context_known,
            sample.stop.identity if sample.stop else None,
            dataclasses.asdict(sample.sampling) if sample.sampling else None,
            json.loads(json.dumps(sample.continuations)),
        )


class Prompts:
    """The prompts of a run, from its folder or rendered.

    Args:
        renderer: makes them.
        run_dir: the run's folder; None to keep nothing.
    """

    def __init__(self, renderer: Renderer, run_dir: Path | None = None) -> None:
        self._renderer = renderer
        self._folder = None if run_dir is None else run_dir / "prompts"
        self._new: dict[Path, str] = {}

    @property
    def style(self) -> dict[str, Any]:
        """See `Renderer`."""
        return self._renderer.style

    def of(self, task: Task, count: int | None, seed: int, length: int) -> list[PlannedPrompt]:
        """The first prompts of a task.

        Args:
            task: the task.
            count: number of samples, None for all.
            seed: of the samples.
            length: of the samples.

        Raises:
            UserError: see `Task.samples`.
        """
        key = self._key(task, seed, length)
        path = None if self._folder is None or key is None else self._folder / f"{digest(key)}.json"
        count = task.count(count, length, self._renderer)
        if path is not None and (kept := _read(path, count)) is not None:
            return kept
        made = [PlannedPrompt.of(*pair) for pair in task.prompts(count, seed, length, self._renderer)]
        if path is not None:
            self._new[path] = _text(made)
        return made

    def save(self) -> None:
        """Keep what was rendered; a folder that cannot be written costs the time of the next command only."""
        for path, text in self._new.items():
            with contextlib.suppress(UserError):
                write(path, text)
        self._new.clear()

    def _key(self, task: Task, seed: int, length: int) -> dict[str, Any] | None:
        """All that the prompts depend on; None where that cannot be said."""
        code, files = _code(type(task.config)), _files(task)
        if code is None or files is None:
            return None
        return {
            "form": FORM,
            "task": task.identity(length),
            "length": length,
            "seed": seed,
            "code": code,
            "files": files,
            "packages": _packages(),
            "tokenizer": self._renderer.tokenizer_digest,
            "template": self._renderer.style,
            "limit": self._renderer.limit,
        }


def forget(run_dir: Path) -> None:
    """Remove what is kept of prompts, as it does not say what the prompts are."""
    for path in (run_dir / "prompts").glob("*.json"):
        with contextlib.suppress(OSError):
            path.unlink()


def _text(prompts: list[PlannedPrompt]) -> str:
    rows = json.dumps([list(dataclasses.astuple(prompt)) for prompt in prompts])
    return f"{hashlib.sha256(rows.encode()).hexdigest()}\n{rows}\n"


def _read(path: Path, count: int) -> list[PlannedPrompt] | None:
    """The first prompts of a file; None if it is missing, damaged or has fewer."""
    try:
        check, _, rows = path.read_bytes().partition(b"\n")
        rows = rows.removesuffix(b"\n")
        if check.decode() != hashlib.sha256(rows).hexdigest():
            return None
        found = read_json(rows)
        return [PlannedPrompt(*row) for row in found[:count]] if len(found) >= count else None
    except (OSError, ValueError, TypeError):
        return None


@cache
def _packages() -> dict[str, str]:
    return dict(_versions())


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            yield name, version(name)


@cache
def _code(family: type) -> str | None:
    """Hash of the source of a family and of what all share; None where a part has no file, as in a notebook."""
    modules = {cls.__module__ for cls in family.__mro__ if cls.__module__ not in ("abc", "builtins")}
    paths = {getattr(sys.modules.get(name), "__file__", None) for name in modules}
    if None in paths:
        return None
    shared = {str(path) for path in Path(kvbench.tasks.__path__[0]).glob("*.py")}
    total = hashlib.sha256()
    for path in sorted({str(path) for path in paths} | shared):
        try:
            total.update(hashlib.sha256(Path(path).read_bytes()).digest())
        except OSError:
            return None
    return total.hexdigest()


def _files(task: Task) -> dict[str, str] | None:
    """Hashes of the files that the samples are made from; None where one cannot be read."""
    if task.config.data_digest is not None:
        # part of the identity
        return {}
    found = {}
    for name in task.config.paths:
        if (path := getattr(task.config, name)) is not None:
            try:
                with open(path, "rb") as file:
                    found[name] = hashlib.file_digest(file, "sha256").hexdigest()
            except (OSError, TypeError):
                return None
    return found
