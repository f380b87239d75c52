"""Judges texts that are known beforehand by their log probabilities on the compressed cache of every cell.

A forward pass over prompt and text would be a dense prefill, which no method touches: here the text's tokens are fed as
decode steps behind the compressed prompt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from kvbench.config.numbers import NotFiniteError
from kvbench.engine.failures import DenseError, Failure, device_lost
from kvbench.engine.finite import check_snapshot
from kvbench.engine.forced import Rows, token_log_probs
from kvbench.engine.prefill import Snapshot
from kvbench.engine.results import Decoded, Group
from kvbench.engine.rope import check_rope
from kvbench.kernels.clock import synchronize
from kvbench.methods.base import Resolved


@torch.inference_mode()
def judge_cells(
    model: PreTrainedModel, snapshot: Snapshot, question: list[int], last: int, cells: list[Resolved],
    texts: Sequence[Sequence[int]],
) -> Group:  # fmt: skip
    """Compress a snapshot for every cell, and feed each text to a copy of each cell's cache.

    Args:
        model: loaded with the attention hook.
        snapshot: the prefilled prompt (its context only, when query-agnostic).
        question: tokens between the snapshot and the last prompt token.
        last: the last prompt token, the first decode step.
        cells: methods with their budgets, without those that equal dense.
        texts: tokens of each text.

    Returns:
        Results with `log_probs`, natural logarithms by text and token, in place of generated tokens.

    Raises:
        UserError: the model's rotary frequencies change within a text.
        DenseError: the snapshot, or dense's own row, is not finite or raises.
    """
    started = time.perf_counter()
    try:
        check_snapshot(snapshot.in_use(), snapshot.logits)
    except NotFiniteError as error:
        raise DenseError(Failure.of(error, "prefill")) from None
    room = max(map(len, texts))
    check_rope(snapshot.rope_until, snapshot.length, snapshot.length + len(question) + room)
    failed: dict[int, Failure] = {}

    def judged(part: Sequence[Resolved | None], failed: dict[int, Failure]) -> list[Decoded] | Failure:
        """As `_judged`; where even that does not fit, with the snapshot in the host's memory."""
        found = _judged(model, snapshot, question, last, part, texts, failed)
        if isinstance(found, Failure) and found.kind == "out_of_memory" and snapshot.offload():
            failed.clear()
            found = _judged(model, snapshot, question, last, part, texts, failed)
        return found

    whole = _judged(model, snapshot, question, last, [None, *cells], texts, failed)
    if isinstance(whole, Failure):
        # one by one: passes are padded, so that no number depends on the others
        alone = judged([None], {})
        if isinstance(alone, Failure):
            raise DenseError(alone)
        found: list[Decoded | Failure] = [alone[0]]
        for cell in cells:
            own: dict[int, Failure] = {}
            one = judged([None, cell], own)
            found.append(one if isinstance(one, Failure) else own.get(1) or one[1])
    else:
        found = [failed.get(row) or out for row, out in enumerate(whole)]
    dense = found[0]
    if isinstance(dense, Failure):
        raise DenseError(dense)
    synchronize(model.device)
    steps = sum(map(len, texts))
    return Group(dense, found[1:], 0.0, time.perf_counter() - started, steps)


def _judged(
    model: PreTrainedModel, snapshot: Snapshot, question: list[int], last: int, cells: Sequence[Resolved | None],
    texts: Sequence[Sequence[int]], failed: dict[int, Failure],
) -> list[Decoded] | Failure:  # fmt: skip
    """The results of some cells; a failure where something raised for all together.

    Args:
        failed: is given the failures of single cells, by index.
    """
    try:
        rows = Rows(model, snapshot, cells, max(map(len, texts)), question, failed=failed)
        outs = [
            Decoded(
                stop="forced",
                kept=resident.kept,
                resident=resident.bytes,
                resident_bf16=resident.bf16,
                resident_end=resident.bytes,
                log_probs=[],
            )
            if resident is not None
            else Decoded()
            for resident in rows.resident
        ]
        for text in texts:
            running = [row for row in range(len(cells)) if row not in failed]
            rows.rewind(dict.fromkeys(running, 0))
            found = token_log_probs(rows, {row: [last, *text] for row in running})
            for row in running:
                log_probs = found[row]
                if not all(map(math.isfinite, log_probs)) or not all(rows.finite(row, len(text))):
                    error = NotFiniteError("logits, keys or values of a text are not finite")
                    failed[row] = Failure.of(error, "decode")
                    continue
                out = outs[row]
                assert out.log_probs is not None
                out.log_probs.append(log_probs)
                out.read, out.read_bf16 = rows.bytes_read(row)
                out.held = rows.held(row)
                out.resident_end = rows.cache.resident(row).bytes
        return outs
    except Exception as error:
        if device_lost(error):
            raise
        return Failure.of(error, "decode")
