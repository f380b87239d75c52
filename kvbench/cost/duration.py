"""Minimum time, memory and cost of a planned run on a device, before it is rented."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvbench import methods, tasks
from kvbench.config.errors import UserError
from kvbench.cost.accounting import Account, account
from kvbench.cost.hardware import Hardware
from kvbench.cost.memory import PASS_ROWS, Memory, memory
from kvbench.cost.roofline import estimate, seconds
from kvbench.cost.shapes import ModelShape
from kvbench.methods.dense import Dense
from kvbench.runs.config import RunConfig

#: kinds of runs that have cells
KINDS = ("accuracy", "efficiency")


@dataclass(frozen=True)
class Duration:
    """A run on one device; `modelled`.

    Attributes:
        prompts: prompts prefilled.
        cells: cells measured, dense included.
        seconds: lower bound: bytes over bandwidth or operations over rate, without loading the model, kernel launches,
            the choice of tokens and scoring.
        memory: bytes at a time at the largest prompt.
        usd: rent for these seconds, None for a device without a price.
    """

    prompts: int
    cells: int
    seconds: float
    memory: float
    usd: float | None


@dataclass(frozen=True)
class Work:
    """The prompts of one task and length.

    Attributes:
        task: its label.
        length: tokens of prompt and answer.
        prompts: number of prompts.
        accounts: the cells of a prompt, dense first.
        entries: method and budget of each.
    """

    task: str
    length: int
    prompts: int
    accounts: Sequence[Account]
    entries: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]

    def cells(self, cfg: RunConfig) -> int:
        """Cells of a prompt."""
        return len(self.accounts) * (len(cfg.efficiency.batch) if cfg.kind == "efficiency" else 1)

    def seconds(self, cfg: RunConfig, device: Hardware) -> float:
        """Lower bound for one prompt."""
        return (_together if cfg.kind == "accuracy" else _one_by_one)(cfg, self.accounts, device)

    def memory(self, cfg: RunConfig, chunk: int | None = None) -> Memory:
        """The memory of one prompt; in an efficiency run of the cell that takes the most.

        Args:
            cfg: the run.
            chunk: prompt tokens per forward pass instead of the configured ones.
        """
        chunk = cfg.model.prefill_chunk if chunk is None else chunk
        parts = [cell.resolved.eviction for cell in self.accounts]
        window = max(1, *(part.window for part in parts))
        if any("queries" in part.needs for part in parts):
            window = self.accounts[0].prompt
        sums = any("attention_sum" in part.needs for part in parts)
        if cfg.kind == "accuracy":
            return memory(self.accounts, chunk, window, sums)
        batch = max(cfg.efficiency.batch)
        alone = [
            memory([self.accounts[0], *[cell] * batch], chunk, window, sums, batch) for cell in self.accounts
        ]
        return max(alone, key=lambda one: one.peak)


def duration(cfg: RunConfig, shape: ModelShape, *devices: Hardware, element: int = 2) -> list[Duration]:
    """The duration of a run of kind accuracy or efficiency on each device.

    Args:
        cfg: the run.
        shape: its model.
        devices: where it runs.
        element: bytes per number in the model's dtype.

    Raises:
        UserError: a run of another kind.
    """
    work = planned(cfg, shape, element)
    durations = []
    for device in devices:
        total = math.fsum(part.prompts * part.seconds(cfg, device) for part in work)
        price = device.usd_per_hour
        durations.append(
            Duration(
                prompts=sum(part.prompts for part in work),
                cells=sum(part.prompts * part.cells(cfg) for part in work),
                seconds=total,
                memory=max(part.memory(cfg).peak for part in work),
                usd=None if price is None else price * total / 3600,
            )
        )
    return durations


def planned(cfg: RunConfig, shape: ModelShape, element: int = 2) -> list[Work]:
    """The prompts of a run of kind accuracy or efficiency, by task and length.

    Args:
        cfg: the run.
        shape: its model.
        element: bytes per number in the model's dtype.

    Raises:
        UserError: a run of another kind, or prompts of unknown length.
    """
    if cfg.kind not in KINDS:
        raise UserError(f"kind: {cfg.kind} is not one of {', '.join(KINDS)}")
    return list(_work(cfg, shape, element))


def _work(cfg: RunConfig, shape: ModelShape, element: int) -> Iterator[Work]:
    for label, entry in cfg.task.items():
        built = tasks.build(label, entry)
        task = built.config
        accuracy = cfg.kind == "accuracy"
        seeds = len(cfg.seeds) if task.seeded else 1
        wanted = built.wanted(cfg.limit)
        repeats = seeds * len(cfg.protocol) if accuracy else 1
        if task.typical is not None:
            rows, prompt, answer = task.typical
            count = (rows if wanted is None else min(rows, wanted)) if accuracy else 1
            sizes = [(count * repeats, prompt, answer)]
        elif wanted is None:
            raise UserError(f"task.{label}.samples: all of a file are not counted here, give a number")
        else:
            sizes = []
            for asked in task.length:
                length = task.tokens(asked)
                if length <= task.max_new_tokens:
                    raise UserError(
                        f"task.{label}.length: {length} is not a length of prompt and answer, give more than "
                        f"{task.max_new_tokens}"
                    )
                count = wanted if accuracy else 1
                sizes.append((count * repeats, length - task.max_new_tokens, task.max_new_tokens))
        for count, prompt, answer in sizes:
            new = answer if accuracy else cfg.efficiency.warmup + cfg.efficiency.steps
            size = {"prompt": prompt, "new": new, "element": element}
            entries = list(_cells(cfg))
            accounts = [account(entry, shape, **size, **budget) for entry, budget in entries]
            yield Work(label, prompt + answer, count, accounts, entries)


def _cells(cfg: RunConfig) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Method and budget of each cell of a prompt; dense comes first."""
    budgets: list[dict[str, Any]] = [{"tokens": n} for n in cfg.budget.tokens]
    budgets += [{"ratio": ratio} for ratio in cfg.budget.ratio]
    yield {"method": "dense"}, {}
    for entry in cfg.method.values():
        method = methods.build(entry)
        if not isinstance(method, Dense):
            for budget in budgets if method.needs_budget else [{}]:
                yield entry, budget


def _together(cfg: RunConfig, accounts: Sequence[Account], device: Hardware) -> float:
    """Seconds of one prompt: dense alone, then the cells, which at least are fed its answer."""
    dense, others = accounts[0], accounts[1:]
    shape, element, bandwidth, rate = dense.shape, dense.element, device.bandwidth(), device.flops()

    def products(rows: int) -> float:
        return max(shape.weights_read(element) / bandwidth, 2 * rows * shape.weights_read(1) / rate)

    # dense's steps, and the passes that check its answer
    passes = math.ceil(dense.new / PASS_ROWS) + len(others) * dense.new / PASS_ROWS
    caches = [dense.mean_step(), *(cell.mean_step() for cell in accounts)]
    spent = seconds(dense.prefill(), bandwidth, rate) + dense.new * products(1) + passes * products(PASS_ROWS)
    spent += dense.new * math.fsum(seconds(work, bandwidth, rate) for work in caches)
    return spent + math.fsum(seconds(cell.compress, bandwidth, rate) for cell in others)


def _one_by_one(cfg: RunConfig, accounts: Sequence[Account], device: Hardware) -> float:
    """The same for one prefill after which every method and batch size is measured alone."""
    spent = 0.0
    for cell in accounts:
        spent += estimate(cell, device).compress_s
        for batch in cfg.efficiency.batch:
            spent += cell.new * estimate(cell, device, batch).step_s
    return spent + estimate(accounts[0], device).prefill_s
