"""Expands a configuration into cells, grouped by prompt, each with an id made of all that can change its number."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property

from kvbench import methods, tasks
from kvbench.config.errors import UserError
from kvbench.kernels.operations import every_operation, versioned
from kvbench.methods import Budget, Method
from kvbench.methods.dense import Dense
from kvbench.models.load import LoadedModel
from kvbench.runs import earlier, ids
from kvbench.runs.config import RunConfig
from kvbench.runs.probe import heads_of, operations_called
from kvbench.runs.prompts import PlannedPrompt, Prompts
from kvbench.tasks import Task
from kvbench.tasks.base import refuse_twins

#: what the code of a method on tensors raises; anything else, as memory that runs out, is not the method's
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
#: raised when the engine would give other numbers for the same configuration
ENGINE_VERSION = 2


@dataclass(frozen=True)
class Cell:
    """One method at one budget on one prompt.

    Attributes:
        id: 16 hex digits.
        label: the method's name in this run.
        method: what it is.
        budget: None for a method that has none.
        operations: form and version of every operation that the method calls.
        earlier_id: the id that earlier code gave the same computation; None where it computed something else.
    """

    id: str
    label: str
    method: Method
    budget: Budget | None
    operations: Mapping[str, tuple[str, int]] = field(hash=False)
    earlier_id: str | None = None

    @property
    def is_dense(self) -> bool:
        """Whether the cell is what the others are compared with."""
        return isinstance(self.method, Dense)

    @property
    def ids(self) -> list[str]:
        """The id, and that of earlier code."""
        return [self.id] if self.earlier_id is None else [self.id, self.earlier_id]


@dataclass(frozen=True)
class Group:
    """The cells of one prompt under one protocol; they share one prefill and one decode."""

    task: Task
    length: int
    seed: int
    index: int
    prompt: PlannedPrompt
    protocol: str
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """For progress: `ruler_niah_single_1 2048 #3`."""
        parts = [self.task.label, str(self.length or ""), f"#{self.index}"]
        return " ".join(part for part in parts if part)


def make_plan(cfg: RunConfig, loaded: LoadedModel, prompts: Prompts) -> list[Group]:
    """All groups of a run, in a fixed order.

    Args:
        cfg: the configuration.
        loaded: the model.
        prompts: those of the run.

    Raises:
        UserError: a length that a task cannot meet or the model does not take, or two tasks or lengths with the
            same prompt.
    """
    engine = {
        "engine": ENGINE_VERSION,
        "model": loaded.fingerprint,
        "dtype": str(loaded.dtype),
        "attention": cfg.model.attention,
        "prefill_chunk": cfg.model.prefill_chunk,
        "block_rows": cfg.decode.block_rows,
        "ignore_eos": cfg.decode.ignore_eos,
        "first_token": cfg.decode.first_token,
        "kl": cfg.kl,
        "renderer": prompts.style,
    }
    if not loaded.eos_agreed:
        # where its files agree, the fingerprint has them
        engine["eos"] = sorted(loaded.eos_ids)
    entries = list(_entries(cfg, loaded))
    shared = ids.texts(engine)
    groups = [group for part in _samples(cfg, prompts) for group in _groups(cfg, part, entries, shared)]
    refuse_twins((g.task.label, f"{g.name} {g.protocol}", g.cells[0].id) for g in groups)
    return groups


def stored_id(ids: Sequence[str], done: Set[str], planned: Container[str] = ()) -> str:
    """The id under which a cell is in the store or in an earlier plan; else the first one, which a new cell gets.

    Args:
        ids: those that stand for the same computation, see `Cell.ids`.
        done: ids in the store.
        planned: ids in plans of the folder.
    """
    stored = next((name for name in ids if name in done), None)
    return stored or next((name for name in ids if name in planned), ids[0])


def with_stored_ids(groups: Sequence[Group], done: Set[str], planned: Container[str] = ()) -> list[Group]:
    """The groups; cells that earlier code finished or planned have the ids that it gave them."""

    def stored(cell: Cell) -> Cell:
        name = stored_id(cell.ids, done, planned)
        return cell if name == cell.id else replace(cell, id=name)

    return [replace(group, cells=tuple(map(stored, group.cells))) for group in groups]


@dataclass(frozen=True)
class _Entry:
    """A method at one budget.

    Attributes:
        operations: form and version of the operations that it calls.
        earlier_label: what the ids of earlier code held instead, None where it computed something else.
    """

    label: str
    method: Method
    budget: Budget | None
    operations: Mapping[str, tuple[str, int]]
    earlier_label: str | None

    @cached_property
    def _key(self) -> dict[str, str]:
        return ids.texts(
            {
                "method": self.method.describe(),
                "versions": self.method.versions(),
                "budget": self.budget.label() if self.budget is not None else None,
            }
        )

    @cached_property
    def _now(self) -> dict[str, str]:
        return ids.texts({"operations": self.operations})

    @cached_property
    def _then(self) -> dict[str, str]:
        return ids.texts({"kernels": self.earlier_label})

    def cell(self, setting: Mapping[str, str], turn_start: int | None) -> Cell:
        """The cell of a prompt, `setting` being the other things that its id is made of.

        Args:
            setting: `ids.texts` of what the numbers of all methods depend on.
            turn_start: see `Prompt`; only what filters in every turn depends on it.
        """
        keeps = turn_start is None or self.method.on_turn == "keep"
        own = {} if keeps else ids.texts({"turn_start": turn_start})
        earlier_id = None
        if self.earlier_label is not None:
            earlier_id = ids.joined(setting, own, self._key, self._then)
        name = ids.joined(setting, own, self._key, self._now)
        return Cell(name, self.label, self.method, self.budget, self.operations, earlier_id)


def _entries(cfg: RunConfig, loaded: LoadedModel) -> Iterator[_Entry]:
    heads, device, dtype = heads_of(loaded), loaded.device, loaded.dtype
    then = earlier.forms_then(device, dtype, heads.group, heads.dim)
    for label, method in _methods(cfg):
        for budgets in _budgets(cfg) if method.needs_budget else [[None]]:
            if budgets:
                ratio = budgets[0] is not None and budgets[0].ratio is not None
                try:
                    calls = operations_called(method, ratio, heads)
                    operations = versioned(calls, device, dtype)
                    known = earlier.same_computation(operations, calls, then)
                except UserError:
                    raise
                except FAULTS:
                    # its cells will say why they fail; if they do not, their ids hold every operation
                    operations, known = every_operation(device, dtype, heads.group, heads.dim), False
                earlier_label = earlier.label(then) if known else None
                yield from (_Entry(label, method, budget, operations, earlier_label) for budget in budgets)


def _methods(cfg: RunConfig) -> list[tuple[str, Method]]:
    """Methods by label, dense first: every other one is compared with it, so that it is never left out."""
    built = [(label, methods.build(entry, f"method.{label}")) for label, entry in cfg.method.items()]
    dense = [item for item in built if isinstance(item[1], Dense)] or [("dense", Dense())]
    agnostic = [label for label, method in built if _agnostic(method)]
    if agnostic and "query_agnostic" not in cfg.protocol:
        raise UserError(f"method.{agnostic[0]}: sees no question; allowed: protocol=query_agnostic")
    if agnostic and "query_aware" in cfg.protocol:
        text = f"method.{agnostic[0]}: sees no question, so that it has no cells in query_aware"
        warnings.warn(text, stacklevel=2)
    return dense[:1] + [item for item in built if not isinstance(item[1], Dense)]


def _agnostic(method: Method) -> bool:
    """Whether a method is only for prompts whose question is not seen: it would repeat the question too."""
    return "repeat" in method.needs


def _budgets(cfg: RunConfig) -> list[list[Budget | None]]:
    """Budgets in tokens, and those that are a ratio."""
    return [[Budget(tokens=n) for n in cfg.budget.tokens], [Budget(ratio=str(r)) for r in cfg.budget.ratio]]


_Part = tuple[Task, int, int, int, PlannedPrompt]


def _samples(cfg: RunConfig, prompts: Prompts) -> Iterator[_Part]:
    for label, entry in cfg.task.items():
        task = tasks.build(label, entry)
        count = task.wanted(cfg.limit)
        if (of := task.left_out(count)) is not None:
            warnings.warn(f"task.{label}.samples: the first {count} of {of} in the file", stacklevel=2)
        for length in task.config.length:
            for seed in cfg.seeds if task.config.seeded else cfg.seeds[:1]:
                for index, prompt in enumerate(prompts.of(task, count, seed, length)):
                    yield task, length, seed, index, prompt


def _check_judged(cfg: RunConfig, task: Task, entries: Sequence[_Entry]) -> None:
    """Refuse settings under which log probabilities of texts would not measure a method."""
    if cfg.decode.first_token == "dense":
        raise UserError(
            f"decode.first_token: dense is not for task {task.label}: the first judged token would come from the dense "
            "prefill, the same for every method; allowed: compressed"
        )
    answering = [entry.label for entry in entries if "answer" in entry.method.needs]
    if answering:
        raise UserError(f"method.{answering[0]}: needs dense's answer, and task {task.label} generates none")


def _groups(
    cfg: RunConfig, part: _Part, entries: list[_Entry], engine: dict[str, str],
) -> Iterator[Group]:  # fmt: skip
    task, length, seed, index, prompt = part
    for protocol in cfg.protocol:
        if prompt.later and protocol == "query_agnostic":
            raise UserError(
                f"protocol: query_agnostic is not for task {task.label}: in a conversation only the first "
                "question is seen; allowed: query_aware"
            )
        if prompt.continuations:
            _check_judged(cfg, task, entries)
        if not prompt.context_known and protocol == "query_agnostic":
            raise UserError(
                f"protocol: query_agnostic is not for task {task.label}: where the context of sample {index} ends is "
                "not known; allowed: query_aware"
            )
        setting = engine | ids.texts(
            {
                "task": task.identity(length),
                "prompt": prompt.hash,
                "max_new_tokens": prompt.max_new_tokens,
                "protocol": protocol,
                "seed": seed,
                **({"stop": prompt.stop} if prompt.stop else {}),
                **({"sampling": prompt.sampling} if prompt.sampling else {}),
                **({"continuations": prompt.continuations} if prompt.continuations else {}),
            }
        )
        planned = [entry for entry in entries if protocol == "query_agnostic" or not _agnostic(entry.method)]
        cells = tuple(entry.cell(setting, prompt.turn_start) for entry in planned)
        yield Group(task, length, seed, index, prompt, protocol, cells)
