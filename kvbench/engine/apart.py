"""Decodes the cells of a prompt so that one that raises, or is too large, does not take the others with it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from kvbench.config.errors import UserError
from kvbench.engine.blocks import cell_bytes
from kvbench.engine.decode import DecodeOptions, Group, decode_cells
from kvbench.engine.failures import DenseError, Failure, device_lost
from kvbench.engine.prefill import Snapshot
from kvbench.methods.base import Resolved


def decode_apart(
    model: PreTrainedModel, snapshot: Snapshot, question: list[int], last: int, cells: list[Resolved],
    options: DecodeOptions,
) -> Group:  # fmt: skip
    """Decode all cells together, or where that raises, fewer and fewer of them at a time.

    No number depends on which cells are decoded together. Where memory runs out, blocks of one cell are tried first,
    and then, on a device with memory of its own, with the snapshot in the host's. Arguments as for `decode_cells`.

    Returns:
        The results; a failure in place of a cell that raises when it is decoded with dense alone.

    Raises:
        DenseError: dense alone fails.
        UserError: dense alone is refused, so that the mistake concerns every cell.
    """

    room = len(question) + options.max_new_tokens

    def decoded(part: list[Resolved], options: DecodeOptions) -> Group | Failure:
        try:
            return decode_cells(model, snapshot, question, last, part, options)
        except DenseError:
            raise
        except Exception as error:
            if device_lost(error) or (isinstance(error, UserError) and not part):
                raise
            failure = Failure.of(error, "decode")
        # after the exception, whose frames hold the batch
        _free(snapshot)
        return failure

    def passes(part: list[Resolved], failure: Failure) -> Iterator[Group | Failure]:
        """Results of all of the cells, in order, after decoding them together failed."""
        if len(part) == 1:
            yield _with_size(failure, snapshot, part[0], room)
            return
        for half in (part[: len(part) // 2], part[len(part) // 2 :]):
            found = decoded(half, options)
            if isinstance(found, Failure):
                yield from passes(half, found)
            else:
                yield found

    whole = decoded(cells, options)
    if isinstance(whole, Failure) and whole.kind == "out_of_memory" and len(cells) > 1:
        options = replace(options, block_bytes=1)
        whole = decoded(cells, options)
    if isinstance(whole, Failure) and whole.kind == "out_of_memory" and snapshot.offload():
        options = replace(options, block_bytes=1)
        whole = decoded(cells, options)
    if isinstance(whole, Group):
        return whole
    alone = decoded([], options) if cells else whole
    if isinstance(alone, Failure):
        raise DenseError(_with_size(alone, snapshot, None, room))
    return _joined(alone, list(passes(cells, whole)))


def _with_size(failure: Failure, snapshot: Snapshot, cell: Resolved | None, room: int) -> Failure:
    """The failure of a cell, or of dense, that does not fit even alone, with the bytes that it needs."""
    if failure.kind != "out_of_memory":
        return failure
    whole = sum(layer.k_HTD.nbytes * 2 for layer in snapshot.layers)
    own = whole * room // snapshot.length if cell is None else cell_bytes(snapshot, cell, room)
    host = ", which is in the host's memory but for a layer" if snapshot.offloaded else ""
    reason = f"{failure.reason}; alone it takes about {own:,} bytes beside the prompt's {whole:,}{host}"
    return replace(failure, reason=reason)


def _joined(dense: Group, parts: list[Group | Failure]) -> Group:
    """One result of several passes: their times add up, as all cells share them."""
    cells: list = []
    groups = [dense]
    for part in parts:
        if isinstance(part, Failure):
            cells.append(part)
        else:
            cells += part.cells
            groups.append(part)
    return replace(
        dense,
        cells=cells,
        compress_seconds=sum(group.compress_seconds for group in groups),
        decode_seconds=sum(group.decode_seconds for group in groups),
        steps=max(group.steps for group in groups),
    )


def _free(snapshot: Snapshot) -> None:
    for layer in snapshot.layers:
        layer.forget()
    gc.collect()
    if snapshot.logits.is_cuda:
        torch.cuda.empty_cache()
