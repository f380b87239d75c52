"""The compact caches of many cells, decoded as one batch.

A *lane* is what one cell keeps in one layer, read by its rows of the batch: a prefix that prefill left (a
reference to the snapshot where nothing was evicted) and, in the batch's tail, the tokens appended since. Rows
of a batch advance in step, so that the tail is one tensor for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from kvbench.engine.stored import BaseLane, StoredLane, attend_many, distinct
from kvbench.kernels import sparse_decode
from kvbench.kernels.rope import rotate
from kvbench.kernels.sparse_decode import cpu
from kvbench.methods.base import Kept, LayerRule, LayerSnapshot, Native, Resolved, Stored
from kvbench.methods.per_query_head import PerQueryHead


@dataclass(kw_only=True)
class Lane(BaseLane):
    """A lane that refers to its kept tokens, and to the batch's tail.

    Attributes:
        k_BHKD: kept keys, B = 1 when the rows share them.
        v_BHKD: kept values.
    """

    k_BHKD: Tensor
    v_BHKD: Tensor

    @property
    def kept(self) -> int:
        return self.k_BHKD.shape[2]

    def resident_bytes(self) -> tuple[int, int]:
        """Bytes of one row after compression, and those of them that no dtype of the model changes."""
        total, fixed = self.extra_bytes()
        return (self.k_BHKD[0].numel() + self.v_BHKD[0].numel()) * self.k_BHKD.element_size() + total, fixed


def plain_lane(snapshot: LayerSnapshot, rows: slice) -> Lane:
    """A lane that keeps and reads everything."""
    heads = slice(0, snapshot.heads)
    return Lane(rows=rows, heads=heads, k_BHKD=snapshot.k_HTD[None], v_BHKD=snapshot.v_HTD[None])


def make_lanes(
    snapshot: LayerSnapshot, cell: Resolved, rule: LayerRule, kept: Kept | None, rows: slice, room: int,
    share: bool = True, carried: list[Tensor] | None = None,
) -> list[Lane | StoredLane]:  # fmt: skip
    """The lanes of one cell in one layer: one, or one per KV head where these differ in length.

    Args:
        snapshot: the layer after prefill.
        cell: the method.
        rule: its budget in this layer.
        kept: what the eviction keeps, None for everything.
        rows: rows of the batch that the cell takes.
        room: tokens that may be appended.
        share: one prefix for all rows; False gives every row its own, as separate requests would have.
        carried: what the eviction carries along, see `Eviction.carry`.
    """
    parts = [slice(0, snapshot.heads)]
    if kept is not None and len({len(p) for p in kept.positions}) > 1:
        parts = [slice(head, head + 1) for head in range(snapshot.heads)]
    count = rows.stop - rows.start
    lanes: list[Lane | StoredLane] = []
    for part in parts:
        k_HKD, v_HKD, mask = _gather(snapshot, kept, part)
        if cell.eviction.reindexes and kept is not None:
            k_HKD = _closed_up(snapshot, k_HKD, torch.stack(kept.positions[part]))
        k, v = (x[None] if share else x[None].repeat(count, 1, 1, 1) for x in (k_HKD, v_HKD))
        selection, state = cell.selection, None
        if rule.read is not None:
            selection = selection if mask is None else PerQueryHead(selection, mask)
            state = selection.prepare(k, v, count, room)
        retained = (
            _whole(snapshot, cell, part, 1 if share else count) if cell.retains and kept is not None else None
        )
        common = {
            "rows": rows, "heads": part, "mask_HGK": mask, "selection": selection, "read": rule.read,
            "state": state, "retained": retained,
        }  # fmt: skip
        own = {"kept": k.shape[2], "like": k.new_empty(0)}
        if rule.hold is not None:
            assert mask is None, "an eviction while decoding chooses per KV head"
            numbers = torch.stack(carried[part]) if carried is not None else None
            # where heads keep different numbers of tokens, each holds what it kept
            hold = rule.hold if len(parts) == 1 else k.shape[2]
            store = cell.format.roll(k, v, count, hold, numbers)
            rope = snapshot.rope if cell.eviction.reindexes else None
            lanes.append(StoredLane(**common, **own, store=store, eviction=cell.eviction, rope=rope))
        elif not isinstance(cell.format, Native):
            store = cell.format.store(k, v, count, room)
            lanes.append(StoredLane(**common, **own, store=store))
        else:
            lanes.append(Lane(**common, k_BHKD=k, v_BHKD=v))
    return lanes


def _whole(snapshot: LayerSnapshot, cell: Resolved, part: slice, copies: int) -> Stored:
    """All keys and values of some KV heads, as many copies of them as there are rows that do not share."""
    k, v = snapshot.k_HTD[None, part], snapshot.v_HTD[None, part]
    if copies > 1:
        k, v = (x.repeat(copies, 1, 1, 1) for x in (k, v))
    return cell.format.store(k, v, copies, 0)


def _gather(snapshot: LayerSnapshot, kept: Kept | None, part: slice) -> tuple[Tensor, Tensor, Tensor | None]:
    """Kept keys and values of some KV heads `[H, K, D]`, and the members among them."""
    k, v = snapshot.k_HTD[part], snapshot.v_HTD[part]
    if kept is None:
        return k, v, None
    positions_HK = torch.stack(kept.positions[part])
    offset = torch.arange(len(positions_HK), device=k.device) * snapshot.length
    flat = (positions_HK + offset[:, None]).flatten()
    k, v = (x.reshape(-1, x.shape[-1]).index_select(0, flat).view(*positions_HK.shape, -1) for x in (k, v))
    return k, v, torch.stack(kept.members[part]) if kept.members is not None else None


def _closed_up(snapshot: LayerSnapshot, k_HKD: Tensor, positions_HK: Tensor) -> Tensor:
    """Keys turned to the positions that end where the prompt ends."""
    assert snapshot.rope is not None, "an eviction that reindexes needs rope"
    kept = positions_HK.shape[1]
    places = torch.arange(snapshot.length - kept, snapshot.length, device=k_HKD.device)
    cos, sin = (x.view(*positions_HK.shape, -1) for x in snapshot.rope((places - positions_HK).flatten()))
    return rotate(k_HKD, cos, sin)


class BatchLayer(CacheLayerMixin):
    """One layer of a batch: the lanes of its rows and the tail they append to."""

    def __init__(
        self, lanes: Sequence[Lane | StoredLane], rows: int, group: int, like: Tensor, heads: int, room: int
    ) -> None:
        super().__init__()
        dim = like.shape[-1]
        self.lanes = [lane for lane in lanes if isinstance(lane, Lane)]
        self.stored = [lane for lane in lanes if isinstance(lane, StoredLane)]
        self.combines = any(lane.read is not None and lane.selection.combines for lane in self.lanes)
        self.rows, self.group, self.heads, self.room = rows, group, heads, room
        self.k_tail = like.new_zeros(rows, heads, room, dim)
        self.v_tail = like.new_zeros(rows, heads, room, dim)
        # the compiled form takes all lanes in one call
        compiled = sparse_decode.form(like.device, like.dtype, group, dim) == "compiled"
        self.table = _job_table(self) if compiled else None
        self.filled = 0
        self.tail = torch.zeros(1, dtype=torch.long, device=like.device)
        self.selecting = self.counting = True
        # per row, KV heads together: K/V slots read so far by selection, and the bytes that scoring read
        self.slots_selected = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.score_bytes = [0] * rows

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.table is not None:
            # a copy's tensors are elsewhere
            self.table = _job_table(self)

    # what transformers passes on to the attention function, see models/attention.py
    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> Any:
        count = key_states.shape[2]
        if count == 1:
            self.k_tail.index_copy_(2, self.tail, key_states)
            self.v_tail.index_copy_(2, self.tail, value_states)
        else:
            self.k_tail[:, :, self.filled : self.filled + count] = key_states
            self.v_tail[:, :, self.filled : self.filled + count] = value_states
        for lane in self.lanes:
            if lane.read is None:
                continue
            for n in range(count):
                slot = self.tail + lane.kept + n
                k, v = (x[lane.rows, lane.heads, n] for x in (key_states, value_states))
                lane.selection.append(lane.state, k, v, slot)
        for lane in self.stored:
            lane.append(key_states[lane.rows, lane.heads], value_states[lane.rows, lane.heads])
        self.filled += count
        self.tail += count
        return self, self

    def attend(self, q_BQTD: Tensor, scaling: float) -> Tensor:
        rows, queries, count, dim = q_BQTD.shape
        q_RHGTD = q_BQTD.view(rows, self.heads, self.group, count, dim)
        if count > 1:
            return self._attend_many(q_RHGTD, scaling).flatten(1, 2).transpose(1, 2)
        q_RHGD = q_RHGTD[..., 0, :].contiguous()
        chosen = [self._choose(lane, q_RHGD, scaling) for lane in self.lanes]
        out = torch.empty_like(q_RHGD)
        lse = q_RHGD.new_empty(q_RHGD.shape[:3], dtype=torch.float32) if self.combines else None
        if self.table is not None:
            out, lse = self._together(q_RHGD, chosen, self.table.copy(), scaling)
        for lane, index in zip(self.lanes, chosen, strict=True):
            at = lane.rows, lane.heads
            if self.table is None or _per_query_head(index):
                out[at], part = self._alone(lane, q_RHGD, index, scaling)
                if lse is not None:
                    lse[at] = part
            if lse is not None and index is not None and lane.selection.combines:
                out[at] = lane.selection.combine(out[at], lse[at], lane.state)
        for lane in self.stored:
            out[lane.rows, lane.heads] = lane.attend(q_RHGD[lane.rows, lane.heads], scaling, self.selecting)
        return out.view(rows, 1, queries, dim)

    def _choose(self, lane: Lane, q_RHGD: Tensor, scaling: float) -> Tensor | None:
        """The slots that a lane reads at this step, None for all; counts what is read."""
        if not self.selecting or lane.read is None:
            return None
        q = q_RHGD[lane.rows, lane.heads]
        k_tail = self.k_tail[lane.rows, lane.heads]
        length = self.tail[0] + lane.kept
        index = lane.selection.select(q, lane.k_BHKD, k_tail, length, lane.state, lane.read, scaling)
        if not self.counting:
            return index
        cost = lane.selection.score_bytes(lane.state, lane.kept + self.filled, lane.k_BHKD.element_size())
        for row in range(lane.rows.start, lane.rows.stop):
            self.score_bytes[row] += cost
        self.slots_selected[lane.rows] += distinct(index, lane.kept + self.room)
        return index

    def slots_read(self, row: int, first: int, steps: int) -> int:
        """K/V slots of all KV heads that a row read in `steps` steps after `first` appended tokens."""
        whole = [lane for lane in self.lanes if lane.read is None and lane.rows.start <= row < lane.rows.stop]
        heads = sum(lane.heads.stop - lane.heads.start for lane in whole)
        kept = sum(lane.kept * (lane.heads.stop - lane.heads.start) for lane in whole)
        appended = sum(range(first + 1, first + steps + 1))
        return int(self.slots_selected[row]) + steps * kept + heads * appended

    def _together(
        self, q_RHGD: Tensor, chosen: list[Tensor | None], table: np.ndarray, scaling: float
    ) -> tuple[Tensor, Tensor | None]:
        """All lanes in one call, but for those with a list of slots per query head, whose output is zero."""
        fields = dict(zip(cpu.FIELDS, table, strict=True))
        fields["tail"][:] = self.filled
        for lane in self.stored:
            fields["tail"][lane.rows, lane.heads] = 0
        alive = []
        for lane, index in zip(self.lanes, chosen, strict=True):
            at = lane.rows, lane.heads
            if _per_query_head(index):
                fields["prefix"][at] = fields["tail"][at] = 0
            elif index is not None:
                alive.append(index.contiguous())
                fields["index"][at] = cpu.addresses(alive[-1], len(index))
                fields["indexed"][at] = index.shape[2]
        q_JGD = q_RHGD.float().view(self.rows * self.heads, self.group, -1)
        out, lse = cpu.decode_jobs(q_JGD, table, scaling, self.k_tail.dtype, self.combines)
        out = out.view(q_RHGD.shape).to(q_RHGD.dtype)
        return out, lse.view(q_RHGD.shape[:3]) if lse is not None else None

    def _alone(
        self, lane: Lane, q_RHGD: Tensor, index: Tensor | None, scaling: float
    ) -> tuple[Tensor, Tensor]:
        return sparse_decode.sparse_decode(
            q_RHGD[lane.rows, lane.heads],
            lane.k_BHKD,
            lane.v_BHKD,
            self.k_tail[lane.rows, lane.heads],
            self.v_tail[lane.rows, lane.heads],
            self.tail[0],
            scaling,
            index,
            lane.mask_HGK,
        )

    def _attend_many(self, q_RHGTD: Tensor, scaling: float) -> Tensor:
        """The question of a query-agnostic prompt at once: reads all kept, causal among itself."""
        out = torch.empty_like(q_RHGTD)
        for lane in self.lanes:
            q = q_RHGTD[lane.rows, lane.heads]
            k, v = (
                torch.cat(
                    [prefix.expand(len(q), -1, -1, -1), tail[lane.rows, lane.heads, : self.filled]], dim=2
                )
                for prefix, tail in ((lane.k_BHKD, self.k_tail), (lane.v_BHKD, self.v_tail))
            )
            members = lane.mask_HGK
            if members is not None:
                members = torch.nn.functional.pad(members, (0, self.filled), value=True)
            out[lane.rows, lane.heads] = attend_many(q, k, v, members, scaling)
        for lane in self.stored:
            out[lane.rows, lane.heads] = lane.attend_many(q_RHGTD[lane.rows, lane.heads], scaling)
        return out

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the tail is allocated at once."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return self.room


class BatchCache(Cache):
    """The cache of one batch of rows: `compressed` prompt tokens behind every row, then the tail.

    Attributes:
        compressed: logical length of the prompt part, L, whatever each row kept of it.
    """

    def __init__(self, layers: list[BatchLayer], compressed: int) -> None:
        self.batch_layers = layers
        self.compressed = compressed
        super().__init__(layers=list(layers))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The logical length, not the kept one."""
        return self.compressed + self.batch_layers[layer_idx].filled

    @property
    def recordable(self) -> bool:
        """Whether a CUDA graph can hold a step: the same operations on the same memory each time."""
        return all(lane.store.static for layer in self.batch_layers for lane in layer.stored)

    def stop_counting(self) -> None:
        """What is read is not counted from now on: a timed step shall do nothing else than decode."""
        for layer in self.batch_layers:
            layer.counting = False
            for lane in layer.stored:
                lane.counting = False

    def select_from_now(self, selecting: bool) -> None:
        """Whether decode steps select; question tokens read everything kept."""
        for layer in self.batch_layers:
            layer.selecting = selecting


def _per_query_head(index: Tensor | None) -> bool:
    """Whether each query head has a list of slots of its own."""
    return index is not None and index.dim() == 4


def _job_table(layer: BatchLayer) -> np.ndarray:
    """Addresses and lengths for the compiled form `[9, rows, heads]`; steps fill in the rest."""
    table = cpu.new_table(layer.rows, layer.heads)
    fields = dict(zip(cpu.FIELDS, table, strict=True))
    for name, tail in (("k_tail", layer.k_tail), ("v_tail", layer.v_tail)):
        fields[name][:] = cpu.addresses(tail, layer.rows)
    for lane in layer.lanes:
        at, count = (lane.rows, lane.heads), lane.rows.stop - lane.rows.start
        for name, kept in (("k_prefix", lane.k_BHKD), ("v_prefix", lane.v_BHKD)):
            assert kept.stride(2) == kept.shape[3] and kept.stride(3) == 1
            fields[name][at] = cpu.addresses(kept, count)
        fields["prefix"][at] = lane.kept
        if lane.mask_HGK is not None:
            lane.mask_HGK = lane.mask_HGK.contiguous()
            fields["mask"][at] = cpu.addresses(lane.mask_HGK[None], count)
    return table
