"""The compact caches of many cells, decoded as one batch.

A *lane* is what one cell keeps in one layer, read by its rows of the batch: a prefix that prefill left (a reference to
the snapshot where nothing was evicted) and, in the block's tail, the tokens appended since. Rows of a block advance in
step, so that the tail is one tensor for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from kvbench.kernels.sparse_decode import cpu, portable
from kvbench.methods.base import Kept, LayerSnapshot, ReadAll, Selection


@dataclass
class Lane:
    """What some rows of a block read in one layer.

    Attributes:
        rows: the rows of the block.
        heads: the KV heads; all of them, or one where heads keep different numbers of tokens.
        k_BHKD: kept keys, B = 1 when the rows share them.
        v_BHKD: kept values.
        mask_HGK: which query head may read which kept token, or None.
        selection: what chooses the tokens of a step.
        read: tokens it chooses, None for all.
        state: its auxiliary data.
    """

    rows: slice
    heads: slice
    k_BHKD: Tensor
    v_BHKD: Tensor
    mask_HGK: Tensor | None = None
    selection: Selection = field(default_factory=ReadAll)
    read: int | None = None
    state: Any = None

    @property
    def kept(self) -> int:
        return self.k_BHKD.shape[2]

    def resident_bytes(self) -> int:
        """Bytes of one row after compression: keys, values, members and auxiliary data."""
        payload = (self.k_BHKD[0].numel() + self.v_BHKD[0].numel()) * self.k_BHKD.element_size()
        members = self.mask_HGK.numel() if self.mask_HGK is not None else 0
        return payload + members + (self.selection.resident_bytes(self.state) if self.read is not None else 0)

    def resident_elements(self) -> int:
        """Elements of K, V and auxiliary data of one row, for figures in bf16-equivalent."""
        return self.resident_bytes() // self.k_BHKD.element_size()


def make_lanes(
    snapshot: LayerSnapshot, kept: Kept | None, rows: slice, room: int, selection: Selection, read: int | None,
    share: bool = True,
) -> list[Lane]:  # fmt: skip
    """The lanes of one cell in one layer: one, or one per KV head where these keep different numbers of tokens.

    Args:
        snapshot: the layer after prefill.
        kept: what the eviction keeps, None for everything.
        rows: rows of the block that the cell takes.
        room: tokens that may be appended.
        selection: chooses the tokens of a step.
        read: how many, None for all.
        share: one prefix for all rows; False gives every row its own, as separate requests would have.
    """
    heads, dim = snapshot.heads, snapshot.k_HTD.shape[-1]
    if kept is None:
        groups = [(slice(0, heads), snapshot.k_HTD, snapshot.v_HTD, None)]
    elif len({len(p) for p in kept.positions}) == 1:
        offset = torch.arange(heads, device=snapshot.k_HTD.device) * snapshot.length
        flat = (torch.stack(kept.positions) + offset[:, None]).flatten()
        k, v = (
            x.reshape(-1, dim).index_select(0, flat).view(heads, -1, dim)
            for x in (snapshot.k_HTD, snapshot.v_HTD)
        )
        mask = torch.stack(kept.members) if kept.members is not None else None
        groups = [(slice(0, heads), k, v, mask)]
    else:
        groups = []
        for head, positions in enumerate(kept.positions):
            k, v = (x[head : head + 1].index_select(1, positions) for x in (snapshot.k_HTD, snapshot.v_HTD))
            mask = kept.members[head][None] if kept.members is not None else None
            groups.append((slice(head, head + 1), k, v, mask))
    lanes = []
    count = rows.stop - rows.start
    for part, k, v, mask in groups:
        k, v = (x[None] if share else x[None].repeat(count, 1, 1, 1) for x in (k, v))
        state = selection.prepare(k, count, room) if read is not None else None
        lanes.append(Lane(rows, part, k, v, mask, selection, read, state))
    return lanes


class BlockLayer(CacheLayerMixin):
    """One layer of a block: the lanes of its rows and the tail they append to."""

    def __init__(self, lanes: list[Lane], rows: int, group: int, like: Tensor, heads: int, room: int) -> None:
        super().__init__()
        dim = like.shape[-1]
        self.lanes, self.rows, self.group, self.heads, self.room = lanes, rows, group, heads, room
        self.k_tail = like.new_zeros(rows, heads, room, dim)
        self.v_tail = like.new_zeros(rows, heads, room, dim)
        self.compiled = like.device.type == "cpu" and cpu.available(group, dim)
        self.table = _job_table(self) if self.compiled else None
        self.filled = 0
        self.tail = torch.zeros(1, dtype=torch.long, device=like.device)
        self.selecting = True
        # per row, KV heads together: K/V slots read so far by selection, and the bytes that scoring read
        self.slots_selected = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.score_bytes = [0] * rows

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
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
                lane.selection.append(lane.state, key_states[lane.rows, lane.heads, n], slot)
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
        out = self._compiled(q_RHGD, chosen, scaling) if self.compiled else torch.empty_like(q_RHGD)
        for lane, index in zip(self.lanes, chosen, strict=True):
            if not self.compiled or (index is not None and index.dim() == 4):
                out[lane.rows, lane.heads] = self._portable(lane, q_RHGD, index, scaling)
        return out.view(rows, 1, queries, dim)

    def _choose(self, lane: Lane, q_RHGD: Tensor, scaling: float) -> Tensor | None:
        """The slots that a lane reads at this step, None for all; counts what is read."""
        if not self.selecting or lane.read is None:
            return None
        q = q_RHGD[lane.rows, lane.heads]
        k_tail = self.k_tail[lane.rows, lane.heads]
        length = self.tail[0] + lane.kept
        index = lane.selection.select(q, lane.k_BHKD, k_tail, length, lane.state, lane.read, scaling)
        cost = lane.selection.score_bytes(lane.state, lane.kept + self.filled, lane.k_BHKD.element_size())
        for row in range(lane.rows.start, lane.rows.stop):
            self.score_bytes[row] += cost
        self.slots_selected[lane.rows] += _distinct(index, lane.kept + self.room)
        return index

    def slots_read(self, row: int, first: int, steps: int) -> int:
        """K/V slots that a row read in `steps` decode steps, KV heads together, `first` appended tokens before them."""
        whole = [lane for lane in self.lanes if lane.read is None and lane.rows.start <= row < lane.rows.stop]
        heads = sum(lane.heads.stop - lane.heads.start for lane in whole)
        kept = sum(lane.kept * (lane.heads.stop - lane.heads.start) for lane in whole)
        appended = sum(range(first + 1, first + steps + 1))
        return int(self.slots_selected[row]) + steps * kept + heads * appended

    def _compiled(self, q_RHGD: Tensor, chosen: list[Tensor | None], scaling: float) -> Tensor:
        assert self.table is not None
        table = self.table.copy().reshape(9, self.rows, self.heads)
        table[cpu.FIELDS.index("tail")] = self.filled
        alive = []
        for lane, index in zip(self.lanes, chosen, strict=True):
            if index is None:
                continue
            index = index.contiguous()
            alive.append(index)
            rows, heads = index.shape[:2]
            steps = np.arange(rows * heads, dtype=np.int64).reshape(rows, heads) * index.stride(1) * 4
            table[cpu.FIELDS.index("index"), lane.rows, lane.heads] = index.data_ptr() + steps
            # a list per query head is left to the portable form
            table[cpu.FIELDS.index("indexed"), lane.rows, lane.heads] = (
                index.shape[2] if index.dim() == 3 else 0
            )
        q_JGD = q_RHGD.float().view(self.rows * self.heads, self.group, -1)
        out, _ = cpu.sparse_decode(q_JGD, table.reshape(9, -1), scaling, self.k_tail.dtype)
        return out.view(q_RHGD.shape).to(q_RHGD.dtype)

    def _portable(self, lane: Lane, q_RHGD: Tensor, index: Tensor | None, scaling: float) -> Tensor:
        out, _ = portable.sparse_decode(
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
        return out

    def _attend_many(self, q_RHGTD: Tensor, scaling: float) -> Tensor:
        """Several new tokens at once (the question of a query-agnostic prompt): all kept, causal among themselves."""
        out = torch.empty_like(q_RHGTD)
        count = q_RHGTD.shape[3]
        for lane in self.lanes:
            q = q_RHGTD[lane.rows, lane.heads]
            rows = q.shape[0]
            k, v = (
                torch.cat(
                    [prefix.expand(rows, -1, -1, -1), tail[lane.rows, lane.heads, : self.filled]], dim=2
                )
                for prefix, tail in ((lane.k_BHKD, self.k_tail), (lane.v_BHKD, self.v_tail))
            )
            visible = torch.ones(count, k.shape[2], dtype=torch.bool, device=k.device).tril(
                k.shape[2] - count
            )
            visible = visible.expand(q.shape[1], self.group, -1, -1)
            if lane.mask_HGK is not None:
                members = torch.nn.functional.pad(lane.mask_HGK, (0, self.filled), value=True)
                visible = visible & members[:, :, None, :]
            part = torch.nn.functional.scaled_dot_product_attention(
                q.flatten(1, 2), k, v, attn_mask=visible.flatten(0, 1), scale=scaling, enable_gqa=True
            )
            out[lane.rows, lane.heads] = part.view(q.shape)
        return out

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the tail is allocated at once."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return self.room


class BlockCache(Cache):
    """The cache of one block of rows: `compressed` prompt tokens behind every row, then the tail.

    Attributes:
        compressed: logical length of the prompt part, L, whatever each row kept of it.
    """

    def __init__(self, layers: list[BlockLayer], compressed: int) -> None:
        self.block_layers = layers
        self.compressed = compressed
        super().__init__(layers=list(layers))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The logical length, not the kept one."""
        return self.compressed + self.block_layers[layer_idx].filled

    def select_from_now(self, selecting: bool) -> None:
        """Whether decode steps select; question tokens read everything kept."""
        for layer in self.block_layers:
            layer.selecting = selecting


def _distinct(index: Tensor, capacity: int) -> Tensor:
    """Slots that are read at least once per row, summed over KV heads: `[R]`."""
    if index.dim() == 3:
        return (index >= 0).sum(dim=(1, 2))
    seen = torch.zeros(*index.shape[:2], capacity + 1, dtype=torch.bool, device=index.device)
    flat = torch.where(index < 0, capacity, index).flatten(2).long()
    return seen.scatter_(2, flat, True)[..., :capacity].sum(dim=(1, 2))


def _job_table(layer: BlockLayer) -> np.ndarray:
    """Addresses and lengths for the compiled form, `[9, rows * heads]`; tail lengths and indices change per step."""
    fields = {name: n for n, name in enumerate(cpu.FIELDS)}
    table = np.zeros((9, layer.rows, layer.heads), dtype=np.int64)
    element = layer.k_tail.element_size()
    for name, tail in (("k_tail", layer.k_tail), ("v_tail", layer.v_tail)):
        order = np.arange(layer.rows * layer.heads, dtype=np.int64).reshape(layer.rows, layer.heads)
        table[fields[name]] = tail.data_ptr() + order * tail.stride(1) * element
    for lane in layer.lanes:
        count = lane.rows.stop - lane.rows.start
        for name, kept in (("k_prefix", lane.k_BHKD), ("v_prefix", lane.v_BHKD)):
            row = np.arange(count)[:, None] * (kept.stride(0) if kept.shape[0] > 1 else 0)
            head = np.arange(kept.shape[1])[None, :] * kept.stride(1)
            table[fields[name], lane.rows, lane.heads] = kept.data_ptr() + (row + head) * element
            assert kept.stride(2) == kept.shape[3] and kept.stride(3) == 1
        table[fields["prefix"], lane.rows, lane.heads] = lane.kept
        if lane.mask_HGK is not None:
            bits = lane.mask_HGK.contiguous()
            lane.mask_HGK = bits
            head = np.arange(bits.shape[0]) * bits.stride(0)
            table[fields["mask"], lane.rows, lane.heads] = bits.data_ptr() + head[None, :]
    return table.reshape(9, -1)
