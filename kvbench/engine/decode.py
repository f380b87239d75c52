"""Decodes all cells of a prompt together, one row each, beside the dense row that every group has."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.engine.compress import RowSpan, assign_rows, build_batches
from kvbench.engine.lanes import BatchCache, BatchLayer, Lane
from kvbench.engine.prefill import Snapshot
from kvbench.engine.stored import StoredLane
from kvbench.methods.base import Resolved


@dataclass(frozen=True)
class DecodeOptions:
    """How the cells of a prompt are decoded.

    Attributes:
        max_new_tokens: tokens to generate at most, M.
        eos: ids that end an answer; none are heeded when empty.
        batch_rows: rows per forward pass; a cell's last digits depend on it, so that it is part of the cell's
            id.
        kl: add a teacher-forced row per cell and measure the divergence from dense.
        first_token: "compressed" (the last prompt token is a decode step) or "dense" (prefill gives the first
            token).
    """

    max_new_tokens: int
    eos: frozenset[int] = frozenset()
    batch_rows: int = 48
    kl: bool = True
    first_token: str = "compressed"


@dataclass
class Decoded:
    """What one cell gave.

    Attributes:
        ids: generated tokens, the end token included.
        stop: "eos" or "length".
        kl: mean KL(dense || cell) in nats over dense's own continuation, or None.
        kl_tokens: tokens that the mean is over.
        agree: fraction of those where the cell's most likely token is dense's, or None.
        kept: kept prompt tokens, mean over layers and KV heads.
        resident: bytes after compression; `resident_bf16` with a model in bf16.
        resident_end: bytes after decoding.
        read: bytes of K, V and auxiliary data read per decode step, mean over steps; `read_bf16` likewise.
    """

    ids: list[int] = field(default_factory=list)
    stop: str = "length"
    kl: float | None = None
    kl_tokens: int = 0
    agree: float | None = None
    kept: float = 0.0
    resident: int = 0
    resident_bf16: int = 0
    resident_end: int = 0
    read: float = 0.0
    read_bf16: float = 0.0


@dataclass
class Group:
    """The dense cell and the others of one prompt, with the times they shared."""

    dense: Decoded
    cells: list[Decoded]
    compress_seconds: float
    decode_seconds: float
    steps: int


class _Run:
    """One row that generates freely."""

    def __init__(self, at: RowSpan, eos: frozenset[int]) -> None:
        self.batch, self.row, self.eos = at.batch, at.rows.start, eos
        self.done = False
        self.out = Decoded()

    def take(self, token: int) -> None:
        self.out.ids.append(token)
        if token in self.eos:
            self.out.stop, self.done = "eos", True


@torch.inference_mode()
def decode_cells(
    model: PreTrainedModel, snapshot: Snapshot, question: list[int], last: int, cells: list[Resolved],
    options: DecodeOptions, progress: Callable[[int, int], None] = lambda step, steps: None,
) -> Group:  # fmt: skip
    """Compress a snapshot for every cell and decode them all, with the dense cell.

    Args:
        model: loaded with the attention hook.
        snapshot: the prefilled prompt (its context only, when query-agnostic).
        question: tokens between the snapshot and the last prompt token, fed to every row before decoding.
        last: the last prompt token (ignored when the first token is dense).
        cells: methods with their budgets; those that equal dense do not belong here.
        options: see DecodeOptions.
        progress: called after each step with (steps done, steps at most).
    """
    started = time.perf_counter()
    spans, batches = assign_rows(len(cells), options.batch_rows, 2 if options.kl else 1)
    room = len(question) + options.max_new_tokens
    caches = build_batches(snapshot, cells, spans, batches, options.batch_rows, room)
    _wait(model)
    compressed = time.perf_counter()

    runs = [_Run(RowSpan(0, slice(0, 1)), options.eos)] + [_Run(at, options.eos) for at in spans]
    for run, span in zip(runs, [RowSpan(0, slice(0, 1)), *spans], strict=True):
        resident = measure_resident(caches[span.batch], span.rows.start)
        run.out.kept = resident.kept
        run.out.resident, run.out.resident_bf16 = resident.bytes, resident.bf16
        run.out.resident_end = resident.bytes
    if question:
        _feed(model, caches, question, options.batch_rows)
    divergence = _Divergence(spans) if options.kl and cells else None
    steps = _steps(model, snapshot, caches, runs, divergence, last, options, progress)
    _wait(model)
    if divergence is not None:
        divergence.report([run.out for run in runs[1:]])
    return Group(
        dense=runs[0].out,
        cells=[run.out for run in runs[1:]],
        compress_seconds=compressed - started,
        decode_seconds=time.perf_counter() - compressed,
        steps=steps,
    )


def _steps(
    model: PreTrainedModel, snapshot: Snapshot, caches: list[BatchCache], runs: list[_Run],
    divergence: _Divergence | None, last: int, options: DecodeOptions, progress: Callable[[int, int], None],
) -> int:  # fmt: skip
    """Decode steps until every free row has ended; returns how many."""
    steps = options.max_new_tokens
    if options.first_token == "dense":
        last = int(snapshot.logits.argmax())
        steps -= 1
        for run in runs:
            run.take(last)
    tokens = torch.full((len(caches), options.batch_rows), last, device=model.device)
    done = 0
    for step in range(steps):
        if all(run.done for run in runs):
            break
        running = [run for run in runs if not run.done]
        upcoming = []
        for batch, cache in enumerate(caches):
            position = torch.full((options.batch_rows, 1), cache.get_seq_length(), device=model.device)
            logits = model(
                input_ids=tokens[batch][:, None], position_ids=position, past_key_values=cache, use_cache=True
            ).logits[:, -1].float()  # fmt: skip
            following = logits.argmax(-1)
            if divergence is not None:
                divergence.see(batch, logits, following, active=not runs[0].done)
            upcoming.append(following)
        tokens = torch.stack(upcoming)
        on_host = tokens.cpu()
        for run in running:
            run.take(int(on_host[run.batch, run.row]))
            if run.done or step == steps - 1:
                run.out.read, run.out.read_bf16 = read_bytes(caches[run.batch], run.row, step + 1)
                run.out.resident_end = measure_resident(caches[run.batch], run.row).bytes
        done = step + 1
        progress(done, steps)
    return done


class _Divergence:
    """KL from dense over its own continuation, from rows that are fed dense's tokens in step with it."""

    def __init__(self, spans: list[RowSpan]) -> None:
        self.rows: dict[int, list[int]] = {}
        self.cells: dict[int, list[int]] = {}
        for cell, at in enumerate(spans):
            self.rows.setdefault(at.batch, []).append(at.rows.stop - 1)
            self.cells.setdefault(at.batch, []).append(cell)
        self.kl = torch.zeros(len(spans), dtype=torch.float64)
        self.agree = torch.zeros(len(spans))
        self.tokens = 0

    def see(self, batch: int, logits_RV: Tensor, following_R: Tensor, active: bool) -> None:
        """Account for one step of a batch, and put dense's token in the place of the forced rows' own."""
        if batch == 0:
            self.log_p = logits_RV[0].log_softmax(-1)
            self.token = following_R[0].clone()
            self.tokens += active
        rows, cells = self.rows.get(batch, []), self.cells.get(batch, [])
        if rows and active:
            log_q = logits_RV[rows].log_softmax(-1)
            self.kl[cells] += (self.log_p.exp() * (self.log_p - log_q)).sum(-1).double().cpu()
            self.agree[cells] += (following_R[rows] == self.token).float().cpu()
        following_R[rows] = self.token

    def report(self, out: list[Decoded]) -> None:
        for cell, decoded in enumerate(out):
            decoded.kl_tokens = self.tokens
            if self.tokens:
                decoded.kl = max(0.0, float(self.kl[cell]) / self.tokens)
                decoded.agree = float(self.agree[cell]) / self.tokens


def _feed(model: PreTrainedModel, caches: list[BatchCache], question: list[int], rows: int) -> None:
    """The question of a query-agnostic prompt: every row reads all that it kept."""
    ids = torch.tensor(question, device=model.device).expand(rows, -1)
    for cache in caches:
        start = cache.get_seq_length()
        position = torch.arange(start, start + len(question), device=model.device).expand(rows, -1)
        cache.select_from_now(False)
        model.base_model(input_ids=ids, position_ids=position, past_key_values=cache, use_cache=True)
        cache.select_from_now(True)


def _lanes(layer: BatchLayer, row: int) -> list[Lane | StoredLane]:
    lanes = [*layer.lanes, *layer.stored]
    return [lane for lane in lanes if lane.rows.start <= row < lane.rows.stop]


@dataclass(frozen=True)
class Resident:
    """What one row holds: prompt tokens (mean over layers and KV heads), bytes, bytes with a bf16 model."""

    kept: float
    bytes: int
    bf16: int


def measure_resident(cache: BatchCache, row: int) -> Resident:
    """Measured from the tensors of a row, appended tokens included."""
    total = fixed = heads = kept = element = 0
    for layer in cache.batch_layers:
        element = layer.k_tail.element_size()
        for lane in _lanes(layer, row):
            width = lane.heads.stop - lane.heads.start
            stored = lane.kept if lane.retained is None else lane.retained.count
            heads, kept = heads + width, kept + stored * width
            resident = lane.resident_bytes()
            total, fixed = total + resident[0], fixed + resident[1]
            if isinstance(lane, Lane):
                total += 2 * width * layer.filled * layer.k_tail.shape[-1] * element
    return Resident(kept / heads, total, fixed + (total - fixed) * 2 // element)


def read_bytes(cache: BatchCache, row: int, steps: int) -> tuple[float, float]:
    """Bytes of K, V and auxiliary data that a row read per step, mean over all `steps` so far.

    Returns:
        As measured, and with a model in bf16.
    """
    total = fixed = 0.0
    element = 2
    for layer in cache.batch_layers:
        element = layer.k_tail.element_size()
        slots = layer.slots_read(row, layer.filled - steps, steps)
        total += slots * 2 * layer.k_tail.shape[-1] * element + layer.score_bytes[row]
        for lane in layer.stored:
            if lane.rows.start <= row < lane.rows.stop:
                read = lane.bytes_read[:, row - lane.rows.start].tolist()
                total, fixed = total + read[0], fixed + read[1]
    return total / steps, (fixed + (total - fixed) * 2 / element) / steps


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
