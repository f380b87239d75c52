"""Expands a configuration into cells, grouped by prompt, each with an id made of all that can change its number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvbench import methods, tasks
from kvbench.config.errors import UserError
from kvbench.methods import Budget, Method
from kvbench.methods.dense import Dense
from kvbench.models.load import LoadedModel
from kvbench.runs.config import RunConfig
from kvbench.runs.store import digest
from kvbench.tasks import Renderer, Sample, Task

#: raised when the engine would give other numbers for the same configuration
ENGINE_VERSION = 1


@dataclass(frozen=True)
class Cell:
    """One method at one budget on one prompt.

    Attributes:
        id: 16 hex digits.
        label: the method's name in this run.
        method: what it is.
        budget: None for a method that has none.
    """

    id: str
    label: str
    method: Method
    budget: Budget | None


@dataclass(frozen=True)
class Group:
    """The cells of one prompt under one protocol; they share one prefill and one decode."""

    task: Task
    length: int
    seed: int
    index: int
    sample: Sample
    prompt_hash: str
    protocol: str
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """For progress: `ruler_niah_single_1 2048 #3`."""
        parts = [self.task.label, str(self.length or ""), f"#{self.index}"]
        return " ".join(part for part in parts if part)


def make_plan(cfg: RunConfig, loaded: LoadedModel, renderer: Renderer, kernels: str) -> list[Group]:
    """All groups of a run, in a fixed order.

    Args:
        cfg: the configuration.
        loaded: the model.
        renderer: makes prompts for it.
        kernels: form of the decode kernel, part of every cell's id.

    Raises:
        UserError: a length that a task cannot meet or the model does not take.
    """
    entries = [
        (label, method, budget)
        for label, method in _methods(cfg)
        for budget in (_budgets(cfg) if method.needs_budget else [None])
    ]
    engine = {
        "engine": ENGINE_VERSION,
        "model": loaded.fingerprint,
        "dtype": str(loaded.dtype),
        "attention": cfg.model.attention,
        "prefill_chunk": cfg.model.prefill_chunk,
        "kernels": kernels,
        "block_rows": cfg.decode.block_rows,
        "ignore_eos": cfg.decode.ignore_eos,
        "first_token": cfg.decode.first_token,
        "kl": cfg.kl,
        "renderer": renderer.style,
    }
    return [group for part in _samples(cfg, renderer) for group in _groups(cfg, part, entries, engine)]


def _methods(cfg: RunConfig) -> list[tuple[str, Method]]:
    """Methods by label, dense first: every other one is compared with it, so that it is never left out."""
    built = [(label, methods.build(entry, f"method.{label}")) for label, entry in cfg.method.items()]
    dense = [item for item in built if isinstance(item[1], Dense)] or [("dense", Dense())]
    return dense[:1] + [item for item in built if not isinstance(item[1], Dense)]


def _budgets(cfg: RunConfig) -> list[Budget | None]:
    return [*(Budget(tokens=n) for n in cfg.budget.tokens), *(Budget(ratio=str(r)) for r in cfg.budget.ratio)]


def _samples(cfg: RunConfig, renderer: Renderer) -> Iterator[tuple[Task, int, int, int, Sample, str]]:
    for label, entry in cfg.task.items():
        task = tasks.build(label, entry)
        count = min(task.config.samples, cfg.limit or task.config.samples)
        for length in task.config.length:
            for seed in cfg.seeds if task.config.seeded else cfg.seeds[:1]:
                for index, sample in enumerate(task.samples(count, seed, length, renderer)):
                    yield task, length, seed, index, sample, renderer.render(sample).hash


def _groups(
    cfg: RunConfig, part: tuple[Task, int, int, int, Sample, str],
    entries: list[tuple[str, Method, Budget | None]], engine: dict[str, Any],
) -> Iterator[Group]:  # fmt: skip
    task, length, seed, index, sample, prompt_hash = part
    for protocol in cfg.protocol:
        if sample.earlier and protocol == "query_agnostic":
            raise UserError(
                f"protocol: query_agnostic is not for task {task.label}: in a conversation only the first "
                "question is seen; allowed: query_aware"
            )
        setting = {
            **engine,
            "task": task.identity(),
            "prompt": prompt_hash,
            "max_new_tokens": sample.max_new_tokens,
            "protocol": protocol,
            "seed": seed,
        }
        cells = tuple(
            Cell(digest({**setting, **_method_key(method, budget)}), label, method, budget)
            for label, method, budget in entries
        )
        yield Group(task, length, seed, index, sample, prompt_hash, protocol, cells)


def _method_key(method: Method, budget: Budget | None) -> dict[str, Any]:
    return {
        "method": method.describe(),
        "versions": method.versions(),
        "budget": budget.label() if budget is not None else None,
    }
