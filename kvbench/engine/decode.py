"""Decodes all cells of a prompt: dense alone, then every cell along dense's answer, then from where a cell parts.

Dense's answer is known once dense is decoded. Cells are fed it, many steps of many cells at once (`forced.py`): that
gives the divergence from dense, and a cell's own answer up to the first token that differs. Only from there on a cell
is decoded freely.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.config.numbers import NotFiniteError, clamped
from kvbench.engine.blocks import blocks
from kvbench.engine.dense_answer import decode_dense
from kvbench.engine.failures import DenseError, Failure
from kvbench.engine.finite import check_snapshot, total
from kvbench.engine.forced import PASS_ROWS, Rows
from kvbench.engine.prefill import Snapshot
from kvbench.engine.results import Decoded, DecodeOptions, Group
from kvbench.engine.sizes import STEP
from kvbench.kernels.clock import synchronize
from kvbench.methods.base import Eviction, Resolved

__all__ = ["DecodeOptions", "Decoded", "Group", "decode_cells"]

#: largest rounding error of a mean KL divergence in nats, of fp32 log probabilities
_KL_ERROR = 1e-3
#: bytes of dense's log probabilities that are kept; longer answers go in parts, dense beside the cells
REFERENCE_BYTES = 64 * 2**20
#: steps along dense's answer between looks at which cells have parted, where more cells are left than a pass holds
LOOK_EVERY = 8
#: rows of which log probabilities are compared at once; every pass has a multiple of it
_COMPARED = STEP


@torch.inference_mode()
def decode_cells(
    model: PreTrainedModel, snapshot: Snapshot, question: list[int], last: int, cells: list[Resolved],
    options: DecodeOptions,
) -> Group:  # fmt: skip
    """Compress a snapshot for every cell and decode them all, with the dense cell.

    Args:
        model: loaded with the attention hook.
        snapshot: the prefilled prompt (its context only, when query-agnostic).
        question: tokens between the snapshot and the last prompt token, fed to every row before decoding.
        last: the last prompt token (ignored when the first token is dense).
        cells: methods with their budgets, without those that equal dense.
        options: see DecodeOptions.

    Returns:
        The results; a failure in place of a cell that raised while compressing, or has numbers that are not finite.

    Raises:
        UserError: the model's rotary frequencies change while it decodes.
        DenseError: the snapshot, or dense's own row, is not finite.
        Exception: a decode step raised, for all rows together; `decode_apart` finds the cells behind it.
    """
    started = time.perf_counter()
    try:
        check_snapshot(snapshot.in_use(), snapshot.logits)
    except NotFiniteError as error:
        raise DenseError(Failure.of(error, "prefill")) from None
    room = len(question) + options.max_new_tokens
    reference = _Reference(model) if options.kl and cells else None
    try:
        see = None if reference is None else reference.see
        dense = decode_dense(model, snapshot, question, last, options, see)
    except NotFiniteError as error:
        raise DenseError(Failure.of(error, "decode")) from None
    answer = _Answer.of(dense, last, options)
    prompt = _Prompt(model, snapshot, question, answer, options)
    if reference is not None:
        reference.prompt = prompt
    found: list[Decoded | Failure | None] = [None] * len(cells)
    compressing = 0.0
    parts = list(blocks(snapshot, cells, room, options.block_bytes))
    scores: list[dict[Eviction, Any]] = [{} for _ in snapshot.layers]
    for number, part in enumerate(parts):
        block = _Block(prompt, [cells[index] for index in part], scores)
        compressing += block.compress_seconds
        for index, result in zip(part, block.decoded(reference), strict=True):
            found[index] = result
        # caches of one block at a time
        del block
        later = {cells[index].eviction for rest in parts[number + 1 :] for index in rest}
        for known in scores:
            for eviction in known.keys() - later:
                del known[eviction]
    for layer in snapshot.layers:
        layer.forget()
    synchronize(model.device)
    results = [result for result in found if result is not None]
    return Group(
        dense=dense,
        cells=results,
        compress_seconds=compressing,
        decode_seconds=time.perf_counter() - started - compressing,
        steps=max(len(result.ids) for result in (dense, *results) if isinstance(result, Decoded))
        - answer.given,
    )


@dataclass(frozen=True)
class _Answer:
    """Dense's answer.

    Attributes:
        ids: all of it.
        given: how many of its tokens the prefill gave: 1 where the first token is dense, else 0.
        fed: tokens of its decode steps.
        stop: see `Decoded.stop`.
    """

    ids: list[int]
    given: int
    fed: list[int]
    stop: str

    @classmethod
    def of(cls, dense: Decoded, last: int, options: DecodeOptions) -> _Answer:
        given = int(options.first_token == "dense")
        fed = dense.ids[:-1] if given else [last, *dense.ids[:-1]]
        return cls(dense.ids, given, fed, dense.stop)


@dataclass(frozen=True)
class _Prompt:
    """What all blocks of a prompt have in common."""

    model: PreTrainedModel
    snapshot: Snapshot
    question: list[int]
    answer: _Answer
    options: DecodeOptions

    def rows(self, cells: Sequence[Resolved | None], **known: Any) -> Rows:
        """Cells, compressed."""
        return Rows(self.model, self.snapshot, cells, self.options.max_new_tokens, self.question, **known)


class _Reference:
    """Dense's log probabilities along its own answer, as many steps at once as `REFERENCE_BYTES` hold.

    The passes are those that dense's answer was taken from, of sizes that give the same numbers as the cells', so that
    equal caches have no divergence.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.prompt: _Prompt | None = None
        self.steps = range(0)
        self.parts: list[Tensor] = []
        self.log_p_SV = self.most_likely = torch.empty(0)
        self.span = max(1, REFERENCE_BYTES // (4 * model.config.get_text_config().vocab_size))
        self.rows: Rows | None = None

    def see(self, logits_RV: Tensor, count: int) -> None:
        """Keep the log probabilities of the next steps, as far as there is room."""
        count = min(count, self.span - len(self.steps))
        if count > 0:
            log_p_RV = torch.cat([part.log_softmax(-1) for part in logits_RV.split(_COMPARED)])
            self.parts.append(log_p_RV[:count])
            self.steps = range(self.steps.start, self.steps.stop + count)

    def load(self, steps: range) -> None:
        """Have the log probabilities of some steps, at most `span`."""
        assert self.prompt is not None
        fed = self.prompt.answer.fed
        if steps != self.steps:
            if self.rows is None or len(self.rows.fed[0]) != steps.start:
                self.rows = self.prompt.rows([None])
                self.rows.feed({0: fed[: steps.start]})
            self.parts, self.steps, self.log_p_SV = [], range(steps.start, steps.start), torch.empty(0)
            given = {0: fed[steps.start : steps.stop]}
            self.rows.feed(given, lambda logits_RV, rows, _: self.see(logits_RV, len(rows)))
            if steps.stop == len(fed):
                self.rows = None
        if self.parts:
            self.log_p_SV, self.parts = torch.cat(self.parts), []
            self.most_likely = self.log_p_SV.argmax(-1)

    def compare(self, logits_RV: Tensor, steps: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Divergences from dense in nats, and whether the most likely token is dense's, both fp64 `[R]`."""
        # always the same number of rows, as sums of other shapes may differ in their last digits
        at = [step - self.steps.start for step in steps]
        at_R = torch.tensor(at + [0] * (len(logits_RV) - len(at)), device=logits_RV.device)
        found = []
        for logits, at in zip(logits_RV.split(_COMPARED), at_R.split(_COMPARED), strict=True):
            log_p, log_q = self.log_p_SV[at], logits.log_softmax(-1)
            found.append((log_p.exp() * (log_p - log_q)).sum(-1).double())
        agree = logits_RV.argmax(-1) == self.most_likely[at_R]
        return torch.cat(found), agree.double()


@dataclass
class _Cell:
    """One cell of a block.

    Attributes:
        row: of the block.
        name: for messages.
        out: its result so far.
        forced: its tokens along dense's answer, one per step.
        parted: the step at which its own token differs from dense's, or None.
        bad: the first step along dense's answer whose logits are not finite, or None.
        divergence: sum of the divergences from dense so far, and of the steps whose most likely token is dense's.
        done: its answer has ended.
        failure: why it has none.
    """

    row: int
    name: str
    out: Decoded
    forced: list[int] = field(default_factory=list)
    parted: int | None = None
    bad: int | None = None
    divergence: list[float] = field(default_factory=lambda: [0.0, 0.0])
    done: bool = False
    failure: Failure | None = None

    def fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = Failure.of(NotFiniteError(f"{self.name}: {reason}"), "decode")
            self.done = True


class _Block:
    """Some cells of a prompt, compressed together."""

    def __init__(self, prompt: _Prompt, cells: list[Resolved], scores: list[dict[Eviction, Any]]) -> None:
        started = time.perf_counter()
        self.prompt, self.answer, self.options = prompt, prompt.answer, prompt.options
        failed: dict[int, Failure] = {}
        self.rows = prompt.rows(cells, scores=scores, failed=failed)
        synchronize(prompt.model.device)
        self.compress_seconds = time.perf_counter() - started
        self.cells = []
        for row, (cell, held) in enumerate(zip(cells, self.rows.resident, strict=True)):
            name = f"{cell.eviction.name} x {cell.selection.name} x {cell.format.name}"
            out = Decoded(list(self.answer.ids[: self.answer.given]))
            if held is not None:
                out.kept, out.resident, out.resident_bf16 = held.kept, held.bytes, held.bf16
                out.resident_end = held.bytes
            self.cells.append(_Cell(row, name, out, failure=failed.get(row), done=row in failed))

    def decoded(self, reference: _Reference | None) -> list[Decoded | Failure]:
        """The results, in order."""
        if self.answer.fed:
            self._along_dense(reference)
            self._part()
            self._freely()
            for cell in self.cells:
                self._check_appended(cell, len(self.rows.fed[cell.row]), "decode step")
        else:
            for cell in self.cells:
                cell.out.stop = self.answer.stop
        for cell in self.cells:
            self._report(cell)
        return [cell.failure or cell.out for cell in self.cells]

    def _along_dense(self, reference: _Reference | None) -> None:
        """Feed dense's answer to all cells; without a reference, only until they part from it."""
        fed, given = self.answer.fed, self.answer.given
        live = [cell for cell in self.cells if cell.failure is None]
        steps = range(0)
        while live and steps.stop < len(fed):
            low = steps.stop
            # one pass between looks, if it holds all cells
            span = (PASS_ROWS // len(live) or LOOK_EVERY) if reference is None else reference.span
            steps = range(low, min(low + span, len(fed)))
            if reference is not None:
                reference.load(steps)
            self.rows.feed(
                {cell.row: fed[low : steps.stop] for cell in live},
                lambda logits, rows, steps: self._see_forced(logits, rows, steps, reference),
            )
            for cell in live:
                for step in steps:
                    if cell.parted is None and cell.forced[step] != self.answer.ids[given + step]:
                        cell.parted = step
            if reference is None:
                live = [cell for cell in live if cell.parted is None]
        for cell in self.cells:
            if cell.failure is not None:
                continue
            # a step beyond the last one that counts is nobody's
            last = len(fed) - 1 if reference is not None or cell.parted is None else cell.parted
            if cell.bad is not None and cell.bad <= last:
                cell.fail(f"logits of step {cell.bad} of dense's answer are not finite")
            self._check_appended(cell, last + 1, "step", " of dense's answer")

    def _see_forced(
        self, logits_RV: Tensor, rows: Sequence[int], steps: Sequence[int], reference: _Reference | None
    ) -> None:
        seen = self._chosen(logits_RV, steps)
        if reference is not None:
            seen += reference.compare(logits_RV, steps)
        # one transfer per pass
        for row, step, token, good, *divergence in zip(
            rows, steps, *torch.stack(seen).tolist(), strict=False
        ):
            cell = self.cells[row]
            cell.forced.append(int(token))
            if not good and cell.bad is None:
                cell.bad = step
            for n, value in enumerate(divergence):
                cell.divergence[n] += value

    def _chosen(self, logits_RV: Tensor, steps: Sequence[int]) -> list[Tensor]:
        """The token that follows each step, and whether its logits are finite, both fp64 `[R]`."""
        chosen = self.options.choose(logits_RV, [self.answer.given + step for step in steps])
        return [chosen.double(), total(logits_RV, -1).isfinite().double()]

    def _part(self) -> None:
        """Take each answer as far as it is known; cells that parted go back to that step."""
        live = [cell for cell in self.cells if cell.failure is None]
        for cell in live:
            known = cell.forced if cell.parted is None else cell.forced[: cell.parted + 1]
            cell.out.ids += known
        self.rows.rewind({cell.row: cell.parted + 1 for cell in live if cell.parted is not None})
        for cell in live:
            self._end(cell)

    def _end(self, cell: _Cell) -> None:
        """Note the end of an answer, and what was held and read until then."""
        stop = self.options.stop(cell.out.ids)
        if stop is None:
            return
        cell.out.stop, cell.done = stop, True
        cell.out.read, cell.out.read_bf16 = self.rows.bytes_read(cell.row)
        cell.out.held = self.rows.held(cell.row)
        cell.out.resident_end = self.rows.cache.resident(cell.row).bytes

    def _freely(self) -> None:
        """Decode the cells that have not ended, each from where it is."""

        def see(logits_RV: Tensor, rows: Sequence[int], steps: Sequence[int]) -> None:
            seen = torch.stack(self._chosen(logits_RV, steps))
            for row, step, token, good in zip(rows, steps, *seen.tolist(), strict=False):
                cell = self.cells[row]
                cell.out.ids.append(int(token))
                if not good:
                    cell.fail(f"logits of decode step {step} are not finite")

        sizes = self.rows.sizes if len(self.rows.sizes) > 1 else [self.options.batch_rows]
        while live := [cell for cell in self.cells if not cell.done]:
            self.rows.feed({cell.row: cell.out.ids[-1:] for cell in live}, see, sizes)
            for cell in live:
                if not cell.done:
                    self._end(cell)

    def _check_appended(self, cell: _Cell, steps: int, what: str, of: str = "") -> None:
        """Fail a cell if a key or value that it appended is not finite, even if no step read it."""
        if cell.failure is None and not all(finite := self.rows.finite(cell.row, steps)):
            step = finite.index(False) - len(self.prompt.question)
            where = f"{what} {step}{of}" if step >= 0 else "the question"
            cell.fail(f"keys or values of {where} are not finite")

    def _report(self, cell: _Cell) -> None:
        """Enter the means of the divergence."""
        if not self.options.kl or cell.failure is not None:
            return
        cell.out.kl_tokens = count = len(self.answer.fed)
        if not count:
            return
        kl, agree = (value / count for value in cell.divergence)
        try:
            cell.out.kl = clamped(kl, 0.0, math.inf, _KL_ERROR, f"{cell.name}: KL divergence from dense")
        except ArithmeticError as error:
            cell.failure = Failure.of(error, "decode")
        cell.out.agree = agree
