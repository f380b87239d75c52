"""Divides the cells of a prompt into blocks that are compressed and decoded one after the other.

A block is bounded by the bytes of its caches, so that memory does not grow with the number of cells. Which cells share
a block changes no number (`forced.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from kvbench.engine.compress import refers
from kvbench.engine.prefill import Snapshot
from kvbench.methods.base import LayerRule, LayerSnapshot, Native, Resolved

#: least bytes of caches in a block
BLOCK_BYTES = 768 * 2**20
#: of a kept token's place in the snapshot
PLACE_BYTES = 4


def blocks(
    snapshot: Snapshot, cells: Sequence[Resolved], room: int, limit: int | None = None
) -> Iterator[list[int]]:
    """Indices of the cells of each block: those with one eviction next to each other, which shares its scores.

    Args:
        snapshot: the prefilled prompt.
        cells: methods with their budgets.
        room: tokens that may be appended to a row.
        limit: bytes, see `DecodeOptions.block_bytes`.
    """
    if limit is None:
        limit = max(BLOCK_BYTES, 2 * sum(layer.k_HTD.nbytes for layer in snapshot.layers))
    first = {}
    for index, cell in enumerate(cells):
        first.setdefault(cell.eviction, index)
    block: list[int] = []
    size = 0
    for index in sorted(range(len(cells)), key=lambda n: (first[cells[n].eviction], n)):
        own = cell_bytes(snapshot, cells[index], room)
        if block and size + own > limit:
            yield block
            block, size = [], 0
        block.append(index)
        size += own
    if block:
        yield block


def cell_bytes(snapshot: Snapshot, cell: Resolved, room: int) -> int:
    """An estimate of the bytes that a cell's caches take while it is decoded, besides the snapshot."""
    layer = snapshot.layers[0]
    sizes = {rule: _layer_bytes(layer, cell, rule, room) for rule in set(cell.rules)}
    return sum(sizes[rule] for rule in cell.rules)


def _layer_bytes(layer: LayerSnapshot, cell: Resolved, rule: LayerRule, room: int) -> int:
    heads, length, dim = layer.k_HTD.shape
    slot = 2 * heads * dim * layer.k_HTD.element_size()
    kept = length if rule.keep is None else min(length, rule.keep)
    size = room * slot
    # what each query head of a group keeps for itself is copied
    referred = refers(layer, cell, rule) and getattr(cell.eviction, "heads", "") != "query_head"
    if rule.keep is not None and referred:
        size += (kept + room) * heads * PLACE_BYTES
    elif rule.keep is not None or rule.hold is not None or not isinstance(cell.format, Native):
        size += kept * slot
    if cell.retains:
        size += length * slot
    if rule.read is not None:
        size += _state_bytes(layer, cell, kept, room)
    return size


def _state_bytes(layer: LayerSnapshot, cell: Resolved, kept: int, room: int) -> int:
    """Bytes of a selection's state, read off tensors without data."""
    x = torch.empty(1, layer.heads, kept, layer.k_HTD.shape[-1], dtype=layer.k_HTD.dtype, device="meta")
    try:
        return cell.selection.resident_bytes(cell.selection.prepare(x, x, 1, room))
    except (RuntimeError, NotImplementedError):
        # a user's own selection may need the numbers; keys are what it has most likely copied
        return x.nbytes
