"""Times of one method at a time: compression and decode steps over batch and length."""

from __future__ import annotations

import statistics
import time
from collections.abc import Container, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import groupby

import torch

from kvbench.config.errors import UserError
from kvbench.engine.batch import BatchCache
from kvbench.engine.compress import build_batch
from kvbench.engine.failures import Failure, device_lost
from kvbench.engine.finite import check_snapshot
from kvbench.engine.prefill import Snapshot, prefill_for
from kvbench.engine.step import Step
from kvbench.engine.turns import Split, split_prompt
from kvbench.kernels.clock import clock_for, synchronize
from kvbench.methods import Resolved, Shape
from kvbench.runs import failures, provenance
from kvbench.runs.config import RunConfig, resolved_yaml
from kvbench.runs.context import PromptContext, RunContext
from kvbench.runs.fields import checked
from kvbench.runs.follow import Follow
from kvbench.runs.plan import Cell, Group, stored_id
from kvbench.runs.progress import ProgressDisplay, ProgressFactory, nothing_to_do
from kvbench.runs.record import group_fields, method_fields
from kvbench.runs.rerun import command
from kvbench.runs.sharing import Item, dealt, key_of, part_of
from kvbench.runs.stopping import Stop
from kvbench.runs.store import Record, Store, digest

#: tokens of a prefill before the one that is timed
WARM_UP = 256


@dataclass(frozen=True)
class Point:
    """A cell at one batch size.

    Attributes:
        id: id of its record.
        cell: the method with its budget.
        batch: rows, each with a cache of its own.
    """

    id: str
    cell: Cell
    batch: int

    @property
    def name(self) -> str:
        """For progress: `snapkv 256 batch 4`."""
        budget = self.cell.budget.label() if self.cell.budget else ""
        return f"{self.cell.label} {budget} batch {self.batch}"

    @property
    def needs(self) -> list[str]:
        """What the method needs of a prefill, see `Eviction.needs`."""
        return sorted(self.cell.method.needs)


#: a record, or why there is none
Outcome = Record | Failure


def run_efficiency(cfg: RunConfig, progress: ProgressFactory) -> list[Record]:
    """Measure every method, budget, length and batch that is not in the run's folder yet.

    The prompt is the first sample of each task and length. What fails, or does not fit in memory, is stored as a
    failure.

    Args:
        cfg: the configuration.
        progress: makes the progress display.

    Returns:
        The failures of the run's cells, of this and earlier commands.

    Raises:
        UserError: fixable by the user; dense fails on the first prompt of a folder without a finished cell.
    """
    with Stop(cfg.stop_seconds).installed() as stop:
        return _run(RunContext.load(cfg), progress, stop)


def _run(run: RunContext, progress: ProgressFactory, stop: Stop) -> list[Record]:
    cfg, store = run.cfg, Store(run.cfg.run_dir)
    groups = [group for group in run.plan(store.run_dir) if group.index == 0]
    _check_methods(groups)
    follow = Follow(store)
    stored, before = follow.done | follow.failed, store.planned().cells
    work = [(group, _points(run, group, stored, before)) for group in groups]
    cells = [(group.task.label, p.cell.label, p.id) for group, points in work for p in points]
    planned = {point for *_, point in cells}
    store.write_config(resolved_yaml(cfg))
    store.write_plan(cells, cfg.request, command(cfg))
    skipped = failures.to_skip(planned & (follow.failed - follow.done), cfg.retry_failed)
    items = part_of([_item(run, group, points) for group, points in work], cfg)
    settled = follow.done | skipped
    if all(item.cells <= settled for item in items):
        nothing_to_do(len(planned), len(skipped))
    untried = not planned & follow.done
    with dealt(items, skipped, store, follow, cfg, stop, progress) as (left, display):
        for (group, points), ids in left:
            stop.check_between()
            display.start_prompt(group.name)
            at = PromptContext.render(run, group)
            wanted = [point for point in points if point.id in ids]
            failed_here, dense_failed = _measure_prompt(at, wanted, store, display, stop)
            if dense_failed is not None and untried:
                raise failures.first_prompt(at, dense_failed)
            untried = False
            left.tell(len(at.prompt.ids), provenance.peak_bytes(run.loaded.device))
            failures.warn(failed_here)
    return failures.recorded(store, planned)


def _item(run: RunContext, group: Group, points: list[Point]) -> Item[tuple[Group, list[Point]]]:
    key = key_of(run.loaded.fingerprint, group.prompt.hash, group.protocol)
    return Item(key, frozenset(point.id for point in points), (group, points), group.name)


def _check_methods(groups: Sequence[Group]) -> None:
    methods = {c.label for g in groups for c in g.cells if "answer" in c.method.needs}
    if methods:
        raise UserError(
            f"method: {', '.join(sorted(methods))} needs the answer in advance, which no server has"
        )


def _points(run: RunContext, group: Group, done: Set[str], planned: Container[str]) -> list[Point]:
    """All points of a prompt; those in the store or a plan of the folder have the ids that they have there."""
    options = run.cfg.efficiency
    where = {"device": provenance.device_name(run.loaded.device), "steps": options.steps}
    return [
        Point(stored_id(_ids(cell, batch, where), done, planned), cell, batch)
        for cell in group.cells
        for batch in options.batch
    ]


def _ids(cell: Cell, batch: int, where: Record) -> list[str]:
    return [digest({"cell": name, "timing": "isolated", "batch": batch, **where}) for name in cell.ids]


def _measure_prompt(
    at: PromptContext, points: Sequence[Point], store: Store, display: ProgressDisplay, stop: Stop
) -> tuple[list[Record], Failure | None]:
    """Measure all points of a prompt, with one prefill per set of needs: its time is that of the methods with them.

    Returns:
        The failures, and why dense computes nothing finite on this prompt, so that no other point counts; None if it
        does.
    """
    prompt, group = at.prompt, at.group
    first_token = at.run.cfg.decode.first_token
    split = split_prompt(prompt.ids, prompt.context_end, group.protocol, first_token, prompt.first_end)
    if split.question:
        raise UserError("protocol: efficiency runs are query_aware only")
    failed: list[Record] = []
    dense: Failure | None = None
    for _, alike in groupby(sorted(points, key=lambda p: p.needs), key=lambda p: p.needs):
        for point, outcome in _measure_alike(at, list(alike), split, display):
            if dense is not None:
                outcome = failures.because_of_dense(dense)
            elif isinstance(outcome, Failure) and _is_of_dense(point, outcome):
                dense = outcome
            if isinstance(outcome, Failure):
                record = failures.failure_record(at, point.cell, outcome, "isolated", point.id, point.batch)
                store.extend_failures([record])
                failed.append(record)
            else:
                store.append(outcome)
            display.cells_done(1)
            # a point is short, and what is stored is not lost
            stop.check_between()
    return failed, dense


def _is_of_dense(point: Point, failure: Failure) -> bool:
    """Whether a failure says that dense computes nothing to compare with; what fits in memory differs by method."""
    # a snapshot that is not finite is dense's too
    snapshot = failure.stage == "prefill" and failure.kind == "not_finite"
    return snapshot or (point.cell.is_dense and failure.kind != "out_of_memory")


def _measure_alike(
    at: PromptContext, points: Sequence[Point], split: Split, display: ProgressDisplay
) -> Iterator[tuple[Point, Outcome]]:
    """A record for each point that runs and fits in memory, else a failure."""
    try:
        snapshot = _prefill(at, points, split.compressed)
        check_snapshot(snapshot.layers, snapshot.logits)
    except UserError:
        raise
    except Exception as error:
        if device_lost(error):
            raise
        failure = Failure.of(error, "prefill")
        yield from ((point, failure) for point in points)
        return
    for point in points:
        display.stage(point.name)
        yield point, _outcome(at, snapshot, point, split)


def _outcome(at: PromptContext, snapshot: Snapshot, point: Point, split: Split) -> Outcome:
    try:
        cell = _resolve(at, snapshot, point.cell)
        measured = _measure(at.run, snapshot, split.last, cell, point.batch)
        return checked({**_fields(at, snapshot, point.cell, cell), "cell": point.id, **measured})
    except Exception as error:
        if device_lost(error):
            raise
        return Failure.of(error, "measure")


def _prefill(at: PromptContext, points: Sequence[Point], ids: list[int]) -> Snapshot:
    """The timed prefill; on a GPU after a short one, so that first-use compilation is not timed."""
    model, loaded = at.run.cfg.model, at.run.loaded
    methods = [point.cell.method for point in points]

    def prefill(tokens: list[int]) -> Snapshot:
        return prefill_for(
            methods, loaded.model, loaded.tokenizer, tokens, model.prefill_chunk, model.attention
        )

    if loaded.device.type == "cuda":
        prefill(ids[:WARM_UP])
    return prefill(ids)


def _resolve(at: PromptContext, snapshot: Snapshot, cell: Cell) -> Resolved:
    layer, fed = snapshot.layers[0], int(at.run.cfg.decode.first_token == "compressed")
    shape = Shape(snapshot.length, at.sample.max_new_tokens, layer.num_layers, layer.k_HTD.shape[-1], fed)
    return cell.method.resolve(shape, cell.budget)


def _fields(at: PromptContext, snapshot: Snapshot, cell: Cell, resolved: Resolved) -> Record:
    return {
        **group_fields(at, snapshot),
        "method": cell.label,
        **method_fields(cell, resolved),
        "score": None,
        "kl_to_dense": None,
        "output_ids": None,
        "timing": "isolated",
    }


@torch.inference_mode()
def _measure(run: RunContext, snapshot: Snapshot, last: int, cell: Resolved, batch: int) -> Record:
    """Compress once, then decode step by step."""
    model, options = run.loaded.model, run.cfg.efficiency
    clock = clock_for(model.device)
    provenance.reset_peak(model.device)
    room = options.warmup + options.steps + Step.CAPTURE_STEPS

    def compress() -> BatchCache:
        cache = build_batch(snapshot, cell, batch, room)
        synchronize(model.device)
        return cache

    if model.device.type == "cuda":
        compress()  # kernels are compiled at their first use
    started = time.perf_counter()
    cache = compress()
    compress_seconds = time.perf_counter() - started
    resident = cache.resident(0)
    step = Step(model, cache, last, batch)
    for _ in range(options.warmup):
        step.eager()
    read, read_bf16 = cache.bytes_read(0, options.warmup) if options.warmup else (None, None)
    cache.stop_counting()
    recorded = model.device.type == "cuda" and cache.recordable
    decode_step = step.captured() if recorded else step.eager
    times = [clock.milliseconds(decode_step) for _ in range(options.steps)]
    step.check()
    median = statistics.median(times)
    return {
        "batch": batch,
        "kept_tokens": resident.kept,
        "bytes_resident": resident.bytes,
        "bytes_resident_bf16": resident.bf16,
        "bytes_read_per_step": read,
        "bytes_read_per_step_bf16": read_bf16,
        "compress_s": compress_seconds,
        "decode_ms_per_token": median,
        "decode_ms_p20": _quantile(times, 0.2),
        "decode_ms_p80": _quantile(times, 0.8),
        "tokens_per_s": batch * 1000 / median,
        "step": "graph" if recorded else "eager",
        "peak_bytes": provenance.peak_bytes(model.device),
    }


def _quantile(values: Sequence[float], q: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))
