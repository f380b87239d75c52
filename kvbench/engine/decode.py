"""Decodes all cells of a prompt together, one row each, with the dense row that every group has."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.config.numbers import NotFiniteError, clamped
from kvbench.engine.batch import BatchCache
from kvbench.engine.compress import RowSpan, assign_rows, build_batches
from kvbench.engine.draw import Draw
from kvbench.engine.failures import DenseError, Failure
from kvbench.engine.finite import check_snapshot, total
from kvbench.engine.prefill import Snapshot
from kvbench.engine.rope import check_rope
from kvbench.kernels.clock import synchronize
from kvbench.methods.base import Resolved

_DENSE = RowSpan(0, slice(0, 1))
#: largest rounding error of a mean KL divergence in nats, of fp32 log probabilities
_KL_ERROR = 1e-3


@dataclass(frozen=True)
class DecodeOptions:
    """How the cells of a prompt are decoded.

    Attributes:
        max_new_tokens: maximum number of tokens to generate, M.
        eos: ids that end an answer; empty to generate all M tokens.
        batch_rows: rows per forward pass; a cell's last digits depend on it, so that it is part of the cell's
            id.
        kl: add a teacher-forced row per cell and measure the divergence from dense.
        first_token: "compressed" (the last prompt token is a decode step) or "dense" (prefill gives the first
            token).
        ends: whether an answer ends with the last of these tokens, by its text; None for end tokens only.
        draw: chooses tokens at random; None for the likeliest.
    """

    max_new_tokens: int
    eos: frozenset[int] = frozenset()
    batch_rows: int = 48
    kl: bool = True
    first_token: str = "compressed"
    ends: Callable[[Sequence[int]], bool] | None = None
    draw: Draw | None = None

    def choose(self, logits_RV: Tensor, step: int) -> Tensor:
        """The token of each row, `[R]`; `step` is its number in the answer."""
        return logits_RV.argmax(-1) if self.draw is None else self.draw(logits_RV, step)


@dataclass
class Decoded:
    """The result of one cell.

    Attributes:
        ids: generated tokens, the end token included.
        stop: "eos", "string" (the text ended it) or "length".
        kl: mean KL(dense || cell) in nats over dense's own continuation, or None.
        kl_tokens: tokens that the mean is over.
        agree: fraction of those where the cell's most likely token is dense's, or None.
        kept: kept prompt tokens, mean over layers and KV heads.
        resident: bytes after compression; `resident_bf16` with a bf16 model.
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
    """The results of one prompt, dense and the other cells, with the times they shared."""

    dense: Decoded
    cells: list[Decoded | Failure]
    compress_seconds: float
    decode_seconds: float
    steps: int


class _Row:
    """A cell: the row that generates freely, and the teacher-forced one, if any."""

    def __init__(self, span: RowSpan, caches: list[BatchCache], options: DecodeOptions, name: str) -> None:
        self.batch, self.row, self.options = span.batch, span.rows.start, options
        # dense is its own reference
        self.forced = span.rows.stop - 1 if span.rows.stop - span.rows.start > 1 else None
        self.cache, self.name = caches[span.batch], name
        self.done = False
        self.failure: Failure | None = None
        self.steps = self.forced_steps = 0
        resident = self.cache.resident(self.row)
        self.out = Decoded(
            kept=resident.kept,
            resident=resident.bytes,
            resident_bf16=resident.bf16,
            resident_end=resident.bytes,
        )

    def append(self, token: int) -> None:
        self.out.ids.append(token)
        if token in self.options.eos:
            self.out.stop, self.done = "eos", True
        elif self.options.ends is not None and self.options.ends(self.out.ids):
            self.out.stop, self.done = "string", True

    def measure(self, steps: int) -> None:
        """Record the bytes read in all steps so far and the bytes held now."""
        self.out.read, self.out.read_bf16 = self.cache.bytes_read(self.row, steps)
        self.out.resident_end = self.cache.resident(self.row).bytes

    def check(self, finite_R: list[bool], step: int, dense_runs: bool) -> None:
        """Fail if the logits of a step that counts are not finite.

        Args:
            finite_R: which rows of the batch have finite logits.
            step: number of the step.
            dense_runs: whether dense's answer goes on, which the teacher-forced row is fed.
        """
        if not self.done:
            self.steps = step + 1
            if not finite_R[self.row]:
                self.fail(f"logits of decode step {step} are not finite")
        if self.forced is not None and dense_runs:
            self.forced_steps = step + 1
            if not finite_R[self.forced]:
                self.fail(f"logits of step {step} of dense's answer are not finite")

    def check_appended(self, finite_RT: list[list[bool]], before: int) -> None:
        """Fail if a key or value appended in a step that counts is not finite, even if no step read it.

        Args:
            finite_RT: by row of the batch and appended token.
            before: tokens appended before the first step.
        """
        for row, steps in ((self.row, self.steps), (self.forced, self.forced_steps)):
            if row is not None and not all(finite_RT[row][: before + steps]):
                step = finite_RT[row].index(False) - before
                where = f"decode step {step}" if step >= 0 else "the question"
                self.fail(f"keys or values of {where} are not finite")

    def fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = Failure.of(NotFiniteError(f"{self.name}: {reason}"), "decode")
            self.done = True


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
        cells: methods with their budgets, without those that equal dense.
        options: see DecodeOptions.
        progress: called after each step with (steps done, maximum number of steps).

    Returns:
        The results; a failure in place of a cell that raised while compressing, or has numbers that are not finite.

    Raises:
        UserError: the model's rotary frequencies change while it decodes.
        DenseError: the snapshot, or dense's own row, is not finite.
        Exception: a decode step raised, for all rows together; `decode_apart` finds the cells behind it.
    """
    started = time.perf_counter()
    try:
        check_snapshot(snapshot.layers, snapshot.logits)
    except NotFiniteError as error:
        raise DenseError(Failure.of(error, "prefill")) from None
    spans, batches = assign_rows(len(cells), options.batch_rows, 2 if options.kl else 1)
    room = len(question) + options.max_new_tokens
    last_fed = snapshot.length + room - (options.first_token == "dense")
    check_rope(snapshot.rope_until, snapshot.length, last_fed)
    failed: dict[int, Failure] = {}
    caches = build_batches(snapshot, cells, spans, batches, options.batch_rows, room, failed=failed)
    synchronize(model.device)
    compressed = time.perf_counter()

    names = ["dense", *(_name(cell) for cell in cells)]
    rows = [_Row(span, caches, options, name) for span, name in zip((_DENSE, *spans), names, strict=True)]
    for number, failure in failed.items():
        rows[number + 1].failure, rows[number + 1].done = failure, True
    if question:
        _feed(model, caches, question, options.batch_rows)
    divergence = _Divergence(spans) if options.kl and cells else None
    steps = _decode(model, snapshot, caches, rows, divergence, last, options, progress)
    _check_appended(caches, rows, len(question))
    synchronize(model.device)
    if divergence is not None:
        divergence.report(rows[1:])
    return Group(
        dense=rows[0].out,
        cells=[row.failure or row.out for row in rows[1:]],
        compress_seconds=compressed - started,
        decode_seconds=time.perf_counter() - compressed,
        steps=steps,
    )


def _name(cell: Resolved) -> str:
    """The parts of a cell, for messages."""
    return f"{cell.eviction.name} x {cell.selection.name} x {cell.format.name}"


def _check_appended(caches: list[BatchCache], rows: list[_Row], before: int) -> None:
    """Check the keys and values of every appended token; `before` of them came before the first step."""
    for batch, cache in enumerate(caches):
        finite_RT = cache.finite_tokens().tolist()
        for row in rows:
            if row.batch == batch and row.failure is None:
                row.check_appended(finite_RT, before)
    _check_dense(rows)


def _check_dense(rows: list[_Row]) -> None:
    if rows[0].failure is not None:
        raise DenseError(rows[0].failure)


def _decode(
    model: PreTrainedModel, snapshot: Snapshot, caches: list[BatchCache], rows: list[_Row],
    divergence: _Divergence | None, last: int, options: DecodeOptions, progress: Callable[[int, int], None],
) -> int:  # fmt: skip
    """Decode until every free row has ended; returns the number of steps."""
    steps = options.max_new_tokens
    if options.first_token == "dense":
        last = int(options.choose(snapshot.logits[None], 0))
        steps -= 1
        for row in rows:
            row.append(last)
    tokens = torch.full((len(caches), options.batch_rows), last, device=model.device)
    done, before = 0, options.max_new_tokens - steps
    for step in range(steps):
        if all(row.done for row in rows):
            break
        dense_runs = not rows[0].done
        next_tokens, sums = [], []
        for batch, cache in enumerate(caches):
            position = torch.full((options.batch_rows, 1), cache.get_seq_length(), device=model.device)
            logits = model(
                input_ids=tokens[batch][:, None], position_ids=position, past_key_values=cache, use_cache=True
            ).logits[:, -1].float()  # fmt: skip
            chosen = options.choose(logits, before + step)
            if divergence is not None:
                divergence.add_step(batch, logits, chosen, active=dense_runs)
            next_tokens.append(chosen)
            sums.append(total(logits, -1))
        tokens = torch.stack(next_tokens)
        on_host, finite_BR = torch.stack([tokens, torch.stack(sums).isfinite().long()]).tolist()
        for row in rows:
            row.check(finite_BR[row.batch], step, dense_runs)
        _check_dense(rows)
        for row in rows:
            if row.done:
                continue
            row.append(on_host[row.batch][row.row])
            if row.done or step == steps - 1:
                row.measure(step + 1)
        done = step + 1
        progress(done, steps)
    return done


class _Divergence:
    """KL from dense over its own continuation, from rows that are fed dense's tokens in step with it."""

    def __init__(self, spans: list[RowSpan]) -> None:
        self.rows: dict[int, list[int]] = {}
        self.cells: dict[int, list[int]] = {}
        for cell, span in enumerate(spans):
            self.rows.setdefault(span.batch, []).append(span.rows.stop - 1)
            self.cells.setdefault(span.batch, []).append(cell)
        self.kl = torch.zeros(len(spans), dtype=torch.float64)
        self.agree = torch.zeros(len(spans))
        self.tokens = 0

    def add_step(self, batch: int, logits_RV: Tensor, chosen_R: Tensor, active: bool) -> None:
        """Account for one step of a batch, and replace the teacher-forced rows' tokens by dense's."""
        if batch == 0:
            self.log_p = logits_RV[0].log_softmax(-1)
            self.likeliest, self.token = logits_RV[0].argmax(), chosen_R[0].clone()
            self.tokens += active
        rows, cells = self.rows.get(batch, []), self.cells.get(batch, [])
        if rows and active:
            log_q = logits_RV[rows].log_softmax(-1)
            self.kl[cells] += (self.log_p.exp() * (self.log_p - log_q)).sum(-1).double().cpu()
            self.agree[cells] += (logits_RV[rows].argmax(-1) == self.likeliest).float().cpu()
        chosen_R[rows] = self.token

    def report(self, rows: list[_Row]) -> None:
        """Enter the means into the cells' results."""
        for cell, row in enumerate(rows):
            row.out.kl_tokens = self.tokens
            if not self.tokens or row.failure is not None:
                continue
            kl = float(self.kl[cell]) / self.tokens
            try:
                row.out.kl = clamped(kl, 0.0, math.inf, _KL_ERROR, f"{row.name}: KL divergence from dense")
            except ArithmeticError as error:
                row.failure = Failure.of(error, "decode")
            row.out.agree = float(self.agree[cell]) / self.tokens


def _feed(model: PreTrainedModel, caches: list[BatchCache], question: list[int], rows: int) -> None:
    """Feed a question to every row, which reads everything it kept."""
    ids = torch.tensor(question, device=model.device).expand(rows, -1)
    for cache in caches:
        start = cache.get_seq_length()
        position = torch.arange(start, start + len(question), device=model.device).expand(rows, -1)
        cache.set_selecting(False)
        model.base_model(input_ids=ids, position_ids=position, past_key_values=cache, use_cache=True)
        cache.set_selecting(True)
