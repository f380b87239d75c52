"""From one snapshot to the compact caches of all cells of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.engine.lanes import BatchCache, BatchLayer, Lane, make_lanes, plain_lane
from kvbench.engine.prefill import Snapshot
from kvbench.engine.stored import StoredLane
from kvbench.methods.base import Eviction, Kept, LayerSnapshot, Quota, Resolved


@dataclass(frozen=True)
class RowSpan:
    """Where a cell sits: rows of one batch, the first free, the second (if any) teacher-forced."""

    batch: int
    rows: slice


class AuditError(RuntimeError):
    """A cell's cache is not what its method promised."""


def assign_rows(cells: int, batch_rows: int, rows_each: int) -> tuple[list[RowSpan], int]:
    """Rows for the cells behind the dense row, which is row 0 of batch 0.

    Args:
        cells: how many.
        batch_rows: rows of a batch, the same for every run of a configuration.
        rows_each: 1, or 2 with a teacher-forced row.

    Returns:
        One span per cell, and the number of batches.
    """
    spans, batch, row = [], 0, 1
    for _ in range(cells):
        if row + rows_each > batch_rows:
            batch, row = batch + 1, 0
        spans.append(RowSpan(batch, slice(row, row + rows_each)))
        row += rows_each
    return spans, batch + 1


def build_batches(
    snapshot: Snapshot, cells: list[Resolved], spans: list[RowSpan], batches: int, batch_rows: int, room: int,
    with_dense: bool = True, share: bool = True,
) -> list[BatchCache]:  # fmt: skip
    """Compress for every cell and lay the caches out in batches.

    Scores are computed once per eviction and layer, and each set of kept tokens once per eviction and budget.

    Args:
        snapshot: the prefilled prompt.
        cells: methods with their budgets.
        spans: from `assign_rows`, one per cell.
        batches: number of batches.
        batch_rows: rows per batch.
        room: tokens that will be appended at most.
        with_dense: row 0 of batch 0 is the dense row.
        share: rows of a cell share one prefix; False gives each its own, as separate requests would have.

    Raises:
        AuditError: an eviction kept more or other than it may.
    """
    kept_so_far: dict[tuple[Any, ...], list[Kept]] = {}
    layers: list[list[BatchLayer]] = [[] for _ in range(batches)]
    for layer in snapshot.layers:
        scores: dict[Eviction, Any] = {}
        lanes: list[list[Lane | StoredLane]] = [[] for _ in range(batches)]
        if with_dense:
            lanes[0].append(plain_lane(layer, slice(0, 1)))
        for cell, at in zip(cells, spans, strict=True):
            lanes[at.batch] += cell_lanes(layer, cell, at.rows, room, scores, kept_so_far, share)
        layer.forget()
        for batch in range(batches):
            lanes[batch] += _padding(layer, lanes[batch], batch_rows, room)
            layers[batch].append(
                BatchLayer(lanes[batch], batch_rows, layer.group, layer.k_HTD, layer.heads, room)
            )
    return [BatchCache(batch, snapshot.length) for batch in layers]


def cell_lanes(
    layer: LayerSnapshot, cell: Resolved, rows: slice, room: int, scores: dict[Eviction, Any],
    kept_so_far: dict[tuple[Any, ...], list[Kept]], share: bool = True,
) -> list[Lane | StoredLane]:  # fmt: skip
    """What one cell keeps of one layer; layers must come in order.

    Args:
        layer: the layer.
        cell: the method with its budgets.
        rows: rows of the batch that it takes.
        room: tokens that will be appended at most.
        scores: of this layer so far, by eviction.
        kept_so_far: what evictions kept in the layers before.
        share: rows of a cell share one prefix.

    Raises:
        AuditError: the eviction kept more or other than it may.
    """
    rule = cell.rules[layer.layer]
    kept = carried = None
    if rule.keep is not None:
        kept = _keep(layer, cell, rule.keep, scores, kept_so_far)
    if rule.hold is not None:
        carried = _carried(layer, cell.eviction, kept, scores)
    return make_lanes(layer, cell, rule, kept, rows, room, share, carried)


def _keep(
    layer: LayerSnapshot, cell: Resolved, tokens: int, scores: dict[Eviction, Any],
    kept_so_far: dict[tuple[Any, ...], list[Kept]],
) -> Kept:  # fmt: skip
    eviction = cell.eviction
    earlier = kept_so_far.setdefault((eviction, tuple(rule.keep for rule in cell.rules), cell.ratio), [])
    if len(earlier) > layer.layer:
        return earlier[layer.layer]
    kept = eviction.keep(layer, _scores(layer, eviction, scores), Quota(tokens, cell.ratio, earlier))
    audit(kept, layer, tokens, eviction)
    # layers that keep everything leave a gap that index reuse must not shift
    earlier += [Kept([])] * (layer.layer - len(earlier)) + [kept]
    return kept


def _scores(layer: LayerSnapshot, eviction: Eviction, scores: dict[Eviction, Any]) -> Any:
    if eviction not in scores:
        scores[eviction] = eviction.scores(layer)
    return scores[eviction]


def _carried(
    layer: LayerSnapshot, eviction: Eviction, kept: Kept | None, scores: dict[Eviction, Any]
) -> list[Tensor] | None:
    """What the eviction carries along for each kept token while decoding."""
    everything = torch.arange(layer.length, device=layer.k_HTD.device)
    return eviction.carry(layer, _scores(layer, eviction, scores), kept or Kept([everything] * layer.heads))


def audit(kept: Kept, layer: LayerSnapshot, tokens: int, eviction: Eviction) -> None:
    """Check what an eviction kept: heads, order, range, and that no more than the budget's rule allows was kept.

    Raises:
        AuditError: naming the method and the layer.
    """
    where = f"{eviction.name}, layer {layer.layer}"
    if len(kept.positions) != layer.heads:
        raise AuditError(
            f"{where}: kept sets for {len(kept.positions)} heads, the model has {layer.heads} KV heads"
        )
    for head, positions in enumerate(kept.positions):
        if len(positions) == 0 or int(positions[0]) < 0 or int(positions[-1]) >= layer.length:
            raise AuditError(f"{where}, head {head}: kept positions are empty or outside the prompt")
        if bool((positions[1:] <= positions[:-1]).any()):
            raise AuditError(f"{where}, head {head}: kept positions are not ascending and unique")
    most = tokens + eviction.excess
    if kept.members is None and not eviction.ragged and any(len(p) > most for p in kept.positions):
        raise AuditError(f"{where}: more than {most} tokens kept")


def _padding(layer: LayerSnapshot, lanes: list[Lane | StoredLane], batch_rows: int, room: int) -> list[Lane]:
    """Empty lanes for the rows of a batch that no cell takes."""
    taken = max((lane.rows.stop for lane in lanes), default=0)
    if taken == batch_rows:
        return []
    nothing: Tensor = layer.k_HTD[None, :, :0]
    return [Lane(rows=slice(taken, batch_rows), heads=slice(0, layer.heads), k_BHKD=nothing, v_BHKD=nothing)]
