"""From one snapshot to the compact caches of all cells of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.engine.batch import BatchCache, BatchLayer
from kvbench.engine.dropping import POSITION, Dropping
from kvbench.engine.failures import AuditError
from kvbench.engine.finite import check_scores
from kvbench.engine.lanes import Lane, PlacedLane
from kvbench.engine.prefill import Snapshot
from kvbench.engine.stored import StoredLane
from kvbench.kernels import sparse_decode
from kvbench.kernels.rope import rotate
from kvbench.methods.base import Eviction, Kept, LayerRule, LayerSnapshot, Native, Quota, Resolved, Stored
from kvbench.methods.per_query_head import PerQueryHead


def build_batch(snapshot: Snapshot, cell: Resolved, rows: int, room: int) -> BatchCache:
    """Compress for one cell whose rows have a cache of their own each, as separate requests would.

    A single row refers to the snapshot where nothing is evicted.

    Args:
        snapshot: the prefilled prompt.
        cell: the method with its budgets.
        rows: rows, which advance in step.
        room: maximum number of tokens that will be appended.

    Raises:
        AuditError: an eviction kept tokens that it may not keep.
        NotFiniteError: an eviction's scores are not finite.
    """
    kept_so_far: dict[tuple[Any, ...], list[Kept]] = {}
    layers = []
    for layer in snapshot.layers:
        lanes = cell_lanes(layer, cell, slice(0, rows), room, {}, kept_so_far, share=rows == 1)
        layer.forget()
        layers.append(BatchLayer(lanes, rows, layer.group, layer.k_HTD, layer.heads, room))
    return BatchCache(layers, snapshot.length)


def cell_lanes(
    layer: LayerSnapshot, cell: Resolved, rows: slice, room: int, scores: dict[Eviction, Any],
    kept_so_far: dict[tuple[Any, ...], list[Kept]], share: bool = True,
) -> list[Lane | StoredLane]:  # fmt: skip
    """What one cell keeps of one layer; layers must come in order.

    Args:
        layer: the layer.
        cell: the method with its budgets.
        rows: the cell's rows of the batch.
        room: maximum number of tokens that will be appended.
        scores: scores of this layer so far, by eviction.
        kept_so_far: tokens that evictions kept in earlier layers.
        share: rows of a cell share one prefix.

    Raises:
        AuditError: the eviction kept tokens that it may not keep.
    """
    return lane_maker(layer, cell, rows, room, scores, kept_so_far, share)()


def lane_maker(
    layer: LayerSnapshot, cell: Resolved, rows: slice, room: int, scores: dict[Eviction, Any],
    kept_so_far: dict[tuple[Any, ...], list[Kept]], share: bool = True,
    prepared: dict[tuple[Any, ...], Any] | None = None,
) -> Callable[[], list[Lane | StoredLane]]:  # fmt: skip
    """Choose what one cell keeps of one layer; the result makes its lanes, each time anew.

    Arguments and errors as for `cell_lanes`.

    Args:
        prepared: states of this layer's selections so far, which lanes that start alike share; lanes refer to the
            snapshot where they can. None to make one state each, and to copy what is kept.
    """
    rule = cell.rules[layer.layer]
    kept = carried = None
    if rule.keep is not None:
        kept = _keep(layer, cell, rule.keep, scores, kept_so_far)
    if rule.hold is not None:
        carried = carried_numbers(layer, cell.eviction, kept, scores)
    return partial(make_lanes, layer, cell, rule, kept, rows, room, share, carried, prepared)


def kept_tokens(snapshot: Snapshot, cell: Resolved) -> list[Kept | None]:
    """What a cell keeps of each layer after prefill; None for everything.

    Raises:
        AuditError: the eviction kept tokens that it may not keep.
        NotFiniteError: its scores are not finite.
    """
    kept_so_far: dict[tuple[Any, ...], list[Kept]] = {}
    found: list[Kept | None] = []
    for layer in snapshot.layers:
        tokens = cell.rules[layer.layer].keep
        found.append(None if tokens is None else _keep(layer, cell, tokens, {}, kept_so_far))
        layer.forget()
    return found


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
        found = eviction.scores(layer)
        # before anything is ranked: no order holds NaN
        check_scores(found, eviction, layer.layer)
        scores[eviction] = found
    return scores[eviction]


def carried_numbers(
    layer: LayerSnapshot, eviction: Eviction, kept: Kept | None, scores: dict[Eviction, Any]
) -> dict[str, list[Tensor]]:
    """What the eviction carries along for each kept token while decoding."""
    everything = torch.arange(layer.length, device=layer.k_HTD.device)
    kept = kept or Kept([everything] * layer.heads)
    carried = dict(
        eviction.carry(layer, _scores(layer, eviction, scores) if eviction.carries else None, kept)
    )
    if eviction.locates:
        carried[POSITION] = [positions.int() for positions in kept.positions]
    return carried


def audit(kept: Kept, layer: LayerSnapshot, tokens: int, eviction: Eviction) -> None:
    """Check what an eviction kept: number of heads, order, range, and the limit of the budget rule.

    Raises:
        AuditError: with the method and the layer.
    """
    where = f"{eviction.name}, layer {layer.layer}"
    if len(kept.positions) != layer.heads:
        raise AuditError(
            f"{where}: kept sets for {len(kept.positions)} heads, the model has {layer.heads} KV heads"
        )
    empty = [head for head, positions in enumerate(kept.positions) if not len(positions)]
    # one wait for the device
    margins = [] if empty else _margins(kept.positions, layer.length).tolist()
    for head, (outside, between) in enumerate(margins):
        if outside < 0:
            empty.append(head)
        elif between < 1:
            raise AuditError(f"{where}, head {head}: kept positions are not ascending and unique")
    if empty:
        raise AuditError(f"{where}, head {empty[0]}: kept positions are empty or outside the prompt")
    limit = tokens + eviction.excess
    if kept.members is None and not eviction.ragged and any(len(p) > limit for p in kept.positions):
        raise AuditError(f"{where}: more than {limit} tokens kept")


def _margins(positions: Sequence[Tensor], length: int) -> Tensor:
    """By head, the smallest distance of positions to the prompt's ends, and of one to the next: `[H, 2]`."""
    # heads of one length together
    alike = len({len(p) for p in positions}) == 1
    found = []
    for group in [torch.stack(list(positions))] if alike else [p[None] for p in positions]:
        ends = torch.minimum(group[:, 0], length - 1 - group[:, -1])
        steps = (group[:, 1:] - group[:, :-1]).amin(1) if group.shape[1] > 1 else torch.ones_like(ends)
        found.append(torch.stack([ends, steps], dim=1))
    return torch.cat(found)


def make_lanes(
    snapshot: LayerSnapshot, cell: Resolved, rule: LayerRule, kept: Kept | None, rows: slice, room: int,
    share: bool = True, carried: Mapping[str, list[Tensor]] | None = None,
    prepared: dict[tuple[Any, ...], Any] | None = None,
) -> list[Lane | StoredLane]:  # fmt: skip
    """The lanes of one cell in one layer: one, or one per KV head where these differ in length.

    Args:
        snapshot: the layer after prefill.
        cell: the method.
        rule: its budget in this layer.
        kept: what the eviction keeps, None for everything.
        rows: the cell's rows of the batch.
        room: tokens that may be appended.
        share: one prefix for all rows; False gives every row its own, as separate requests would have.
        carried: what the eviction carries along, see `Eviction.carry`.
        prepared: states of this layer's selections so far, to be shared and added to, for lanes that refer to the
            snapshot where they can; None to share none, and to copy what is kept.
    """
    parts = [slice(0, snapshot.heads)]
    if kept is not None and len({len(p) for p in kept.positions}) > 1:
        parts = [slice(head, head + 1) for head in range(snapshot.heads)]
    count, form = rows.stop - rows.start, cell.format_of(snapshot.layer)
    stores = rule.hold is not None or not isinstance(form, Native)
    lanes: list[Lane | StoredLane] = []
    placed = (
        prepared is not None and kept is not None and kept.members is None and refers(snapshot, cell, rule)
    )
    for part in parts:
        k_HKD, v_HKD, mask = _gather(snapshot, None if placed and rule.read is None else kept, part)
        if cell.eviction.reindexes and kept is not None:
            k_HKD = _reindexed(snapshot, k_HKD, torch.stack(kept.positions[part]))
        k, v = (x[None] if share else x[None].repeat(count, 1, 1, 1) for x in (k_HKD, v_HKD))
        selection, state = cell.selection, None
        if rule.read is not None:
            selection = selection if mask is None else PerQueryHead(selection, mask)
            # the tokens of one `Kept` are those of no other, and lanes that store their tokens change the state
            key = (selection, id(kept), part.start, count, room)
            if prepared is None or stores:
                state = selection.prepare(k, v, count, room)
            elif key not in prepared:
                state = prepared[key] = selection.prepare(k, v, count, room)
            else:
                state = prepared[key]
        retained = (
            _whole(snapshot, cell, part, 1 if share else count) if cell.retains and kept is not None else None
        )
        common = {
            "rows": rows, "heads": part, "mask_HGK": mask, "selection": selection, "read": rule.read,
            "state": state, "retained": retained,
        }  # fmt: skip
        stored = {"kept": k.shape[2], "template": k.new_empty(0)}
        if rule.hold is not None:
            assert mask is None, "an eviction while decoding chooses per KV head"
            numbers = {name: torch.stack(values[part]) for name, values in (carried or {}).items()}
            # where heads keep different numbers of tokens, each holds as many as it kept
            hold = rule.hold if len(parts) == 1 else k.shape[2]
            store = form.roll(k, v, count, hold, cell.eviction.interval, numbers)
            dropping = Dropping.begin(cell.eviction, store, snapshot, part, count)
            rope = snapshot.rope if cell.eviction.reindexes else None
            lanes.append(StoredLane(**common, **stored, store=store, dropping=dropping, rope=rope))
        elif not isinstance(form, Native):
            store = form.store(k, v, count, room)
            lanes.append(StoredLane(**common, **stored, store=store))
        elif placed:
            assert kept is not None
            whole = {"k_BHKD": snapshot.k_HTD[None, part], "v_BHKD": snapshot.v_HTD[None, part]}
            lanes.append(PlacedLane.of(torch.stack(kept.positions[part]), room, **common, **whole))
        else:
            lanes.append(Lane(**common, k_BHKD=k, v_BHKD=v))
    return lanes


def refers(layer: LayerSnapshot, cell: Resolved, rule: LayerRule) -> bool:
    """Whether a cell that keeps the same tokens for all query heads of a group can refer to the snapshot for them.

    It needs attention that reads a list of places as fast as keys and values that lie together, and a selection that
    reads no keys. A store of its own, or keys that are turned, are copies.
    """
    compiled = sparse_decode.form(layer.k_HTD.device, layer.k_HTD.dtype, layer.group, layer.k_HTD.shape[2])
    return (
        compiled == "compiled" and rule.hold is None and isinstance(cell.format_of(layer.layer), Native)
        and not cell.eviction.reindexes and (rule.read is None or not cell.selection.reads_keys)
    )  # fmt: skip


def _whole(snapshot: LayerSnapshot, cell: Resolved, part: slice, copies: int) -> Stored:
    """All keys and values of some KV heads, stored once or once per row."""
    k, v = snapshot.k_HTD[None, part], snapshot.v_HTD[None, part]
    if copies > 1:
        k, v = (x.repeat(copies, 1, 1, 1) for x in (k, v))
    return cell.format_of(snapshot.layer).store(k, v, copies, 0)


def _gather(snapshot: LayerSnapshot, kept: Kept | None, part: slice) -> tuple[Tensor, Tensor, Tensor | None]:
    """Kept keys and values of some KV heads `[H, K, D]`, and their members."""
    k, v = snapshot.k_HTD[part], snapshot.v_HTD[part]
    if kept is None:
        return k, v, None
    positions_HK = torch.stack(kept.positions[part])
    offset = torch.arange(len(positions_HK), device=k.device) * snapshot.length
    flat = (positions_HK + offset[:, None]).flatten()
    k, v = (x.reshape(-1, x.shape[-1]).index_select(0, flat).view(*positions_HK.shape, -1) for x in (k, v))
    return k, v, torch.stack(kept.members[part]) if kept.members is not None else None


def _reindexed(snapshot: LayerSnapshot, k_HKD: Tensor, positions_HK: Tensor) -> Tensor:
    """Keys rotated to consecutive positions that end where the prompt ends."""
    assert snapshot.rope is not None, "an eviction that reindexes needs rope"
    kept = positions_HK.shape[1]
    targets = torch.arange(snapshot.length - kept, snapshot.length, device=k_HKD.device)
    cos, sin = (x.view(*positions_HK.shape, -1) for x in snapshot.rope((targets - positions_HK).flatten()))
    return rotate(k_HKD, cos, sin)
