"""How long a planned run takes on a device at least, and what it needs of it; before the device is rented."""

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


@dataclass(frozen=True)
class Duration:
    """A run on one device; `modelled`.

    Attributes:
        prompts: prompts that are prefilled.
        cells: cells that are measured, dense included.
        seconds: lower bound: bytes over bandwidth or operations over rate, without loading the model, launches,
            the choice of tokens and scoring.
        memory: bytes of weights and caches at the largest prompt.
        usd: rent for these seconds, None where the device has no price.
    """

    prompts: int
    cells: int
    seconds: float
    memory: float
    usd: float | None


def duration(cfg: RunConfig, shape: ModelShape, *devices: Hardware, element: int = 2) -> list[Duration]:
    """The duration of a run of kind accuracy or efficiency, on each device.

    Args:
        cfg: the run.
        shape: its model.
        devices: where it runs.
        element: bytes of a number of the model.

    Raises:
        UserError: another kind.
    """
    if cfg.kind not in ("accuracy", "efficiency"):
        raise UserError(f"kind: {cfg.kind} is not one of accuracy, efficiency")
    reckon = _together if cfg.kind == "accuracy" else _one_by_one
    work = list(_work(cfg, shape, element))
    found = []
    for device in devices:
        parts = [(samples, *reckon(cfg, uses, device)) for samples, uses in work]
        total = sum(samples * spent for samples, _, spent, _ in parts)
        price = device.usd_per_hour
        found.append(
            Duration(
                prompts=sum(samples for samples, *_ in parts),
                cells=sum(samples * cells for samples, cells, *_ in parts),
                seconds=total,
                memory=max(memory for *_, memory in parts),
                usd=None if price is None else price * total / 3600,
            )
        )
    return found


def _work(cfg: RunConfig, shape: ModelShape, element: int) -> Iterator[tuple[int, list[Account]]]:
    """Per task and length the number of prompts, and the cells of one of them."""
    for label, entry in cfg.task.items():
        task = tasks.build(label, entry).config
        accuracy = cfg.kind == "accuracy"
        seeds = len(cfg.seeds) if task.seeded else 1
        samples = min(task.samples, cfg.limit or task.samples) * seeds * len(cfg.protocol) if accuracy else 1
        new = task.max_new_tokens if accuracy else cfg.efficiency.warmup + cfg.efficiency.steps
        for length in task.length:
            sizes = {"prompt": length - task.max_new_tokens, "new": new, "element": element}
            yield samples, [account(entry, shape, **sizes, **budget) for entry, budget in _cells(cfg)]


def _cells(cfg: RunConfig) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Method and budget of each cell of a prompt, dense first."""
    budgets: list[dict[str, Any]] = [{"tokens": n} for n in cfg.budget.tokens]
    budgets += [{"ratio": ratio} for ratio in cfg.budget.ratio]
    yield {"method": "dense"}, {}
    for entry in cfg.method.values():
        method = methods.build(entry)
        if not isinstance(method, Dense):
            for budget in budgets if method.needs_budget else [{}]:
                yield entry, budget


def _together(cfg: RunConfig, uses: list[Account], device: Hardware) -> tuple[int, float, float]:
    """Cells, seconds and bytes of one prompt whose cells are decoded as one batch of rows."""
    dense, others = uses[0], uses[1:]
    shape, element, bandwidth, rate = dense.shape, dense.element, device.bandwidth(), device.flops()
    copies = 2 if cfg.kl else 1
    blocks = math.ceil((1 + copies * len(others)) / cfg.decode.block_rows)
    weights = shape.weights_read(element)
    products = 2 * cfg.decode.block_rows * shape.weights_read(1)
    caches = [dense.mean_step(), *(use.mean_step().times(copies) for use in others)]
    step = blocks * max(weights / bandwidth, products / rate) + sum(
        seconds(work, bandwidth, rate) for work in caches
    )
    spent = seconds(dense.prefill(), bandwidth, rate) + dense.new * step
    spent += sum(seconds(use.compress, bandwidth, rate) for use in others)
    # what is not evicted is shared with the snapshot, and what is kept by the two rows of a cell
    whole = shape.kv_bytes(dense.prompt, element)
    own = [use.resident_end - (whole if use.kept == use.prompt else 0) for use in others]
    return len(uses), spent, decode_peak(dense) + sum(max(0, extra) for extra in own)


def _one_by_one(cfg: RunConfig, uses: list[Account], device: Hardware) -> tuple[int, float, float]:
    """The same where every method and batch size is measured alone, after one prefill."""
    spent, memory = 0.0, 0.0
    for use in uses:
        spent += estimate(use, device).compress_s
        for batch in cfg.efficiency.batch:
            spent += use.new * estimate(use, device, batch).step_s
            memory = max(memory, decode_peak(use, batch) + use.shape.kv_bytes(use.prompt, use.element))
    return len(uses) * len(cfg.efficiency.batch), spent + estimate(uses[0], device).prefill_s, memory
