"""Minimum time, memory and cost of a planned run on a device, before it is rented."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvbench import methods, tasks
from kvbench.config.errors import UserError
from kvbench.cost.accounting import Account, account
from kvbench.cost.hardware import Hardware
from kvbench.cost.roofline import decode_peak, estimate, seconds
from kvbench.cost.shapes import ModelShape
from kvbench.methods.dense import Dense
from kvbench.runs.config import RunConfig

#: rows of a pass of known tokens, see engine/forced.py
PASS_ROWS = 128
#: least bytes of the caches of cells that are decoded together, see engine/blocks.py
BLOCK_BYTES = 768 * 2**20


@dataclass(frozen=True)
class Duration:
    """A run on one device; `modelled`.

    Attributes:
        prompts: prompts prefilled.
        cells: cells measured, dense included.
        seconds: lower bound: bytes over bandwidth or operations over rate, without loading the model, kernel launches,
            the choice of tokens and scoring.
        memory: bytes of weights and caches at the largest prompt.
        usd: rent for these seconds, None for a device without a price.
    """

    prompts: int
    cells: int
    seconds: float
    memory: float
    usd: float | None


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
    if cfg.kind not in ("accuracy", "efficiency"):
        raise UserError(f"kind: {cfg.kind} is not one of accuracy, efficiency")
    prompt_cost = _together if cfg.kind == "accuracy" else _one_by_one
    work = list(_work(cfg, shape, element))
    durations = []
    for device in devices:
        parts = [(samples, *prompt_cost(cfg, accounts, device)) for samples, accounts in work]
        total = math.fsum(samples * spent for samples, _, spent, _ in parts)
        price = device.usd_per_hour
        durations.append(
            Duration(
                prompts=sum(samples for samples, *_ in parts),
                cells=sum(samples * cells for samples, cells, *_ in parts),
                seconds=total,
                memory=max(memory for *_, memory in parts),
                usd=None if price is None else price * total / 3600,
            )
        )
    return durations


def _work(cfg: RunConfig, shape: ModelShape, element: int) -> Iterator[tuple[int, list[Account]]]:
    """Per task and length: the number of prompts, and the cells of one prompt."""
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
            for length in task.length:
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
            yield count, [account(entry, shape, **size, **budget) for entry, budget in _cells(cfg)]


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


def _together(cfg: RunConfig, accounts: list[Account], device: Hardware) -> tuple[int, float, float]:
    """Cells, seconds and bytes of one prompt: dense alone, then the cells, which at least are fed its answer."""
    dense, others = accounts[0], accounts[1:]
    shape, element, bandwidth, rate = dense.shape, dense.element, device.bandwidth(), device.flops()

    def products(rows: int) -> float:
        return max(shape.weights_read(element) / bandwidth, 2 * rows * shape.weights_read(1) / rate)

    # dense's steps, and the passes that check its answer
    passes = math.ceil(dense.new / PASS_ROWS) + len(others) * dense.new / PASS_ROWS
    caches = [dense.mean_step(), *(cell.mean_step() for cell in accounts)]
    spent = seconds(dense.prefill(), bandwidth, rate) + dense.new * products(1) + passes * products(PASS_ROWS)
    spent += dense.new * math.fsum(seconds(work, bandwidth, rate) for work in caches)
    spent += math.fsum(seconds(cell.compress, bandwidth, rate) for cell in others)
    # cells that evict nothing share the snapshot's keys and values
    whole = shape.kv_bytes(dense.prompt, element)
    extra = [max(0, cell.resident_end - (whole if cell.kept == cell.prompt else 0)) for cell in others]
    block = max([BLOCK_BYTES, whole, *extra])
    return len(accounts), spent, decode_peak(dense) + min(block, sum(extra))


def _one_by_one(cfg: RunConfig, accounts: list[Account], device: Hardware) -> tuple[int, float, float]:
    """The same for one prefill after which every method and batch size is measured alone."""
    spent, memory = 0.0, 0.0
    for cell in accounts:
        spent += estimate(cell, device).compress_s
        for batch in cfg.efficiency.batch:
            spent += cell.new * estimate(cell, device, batch).step_s
            memory = max(memory, decode_peak(cell, batch) + cell.shape.kv_bytes(cell.prompt, cell.element))
    return len(accounts) * len(cfg.efficiency.batch), spent + estimate(accounts[0], device).prefill_s, memory
