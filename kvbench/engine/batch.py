"""The caches of many cells, decoded as one batch.

Rows of a batch advance in step, so that one tail tensor holds the appended tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from kvbench.engine.finite import total
from kvbench.engine.held import Held, Trace
from kvbench.engine.lanes import Lane, PlacedLane, attend_many, distinct
from kvbench.engine.stored import StoredLane
from kvbench.kernels import sparse_decode
from kvbench.kernels.sparse_decode import cpu


class BatchLayer(CacheLayerMixin):
    """One layer of a batch: the lanes of its rows and the tail they append to.

    Args:
        lanes: of all rows and KV heads.
        rows: rows of the batch, R.
        group: query heads per KV head.
        template: a tensor with the dtype, device and head dimension of the keys.
        heads: KV heads.
        room: tokens that may be appended.
    """

    def __init__(
        self,
        lanes: Sequence[Lane | StoredLane],
        rows: int,
        group: int,
        template: Tensor,
        heads: int,
        room: int,
    ) -> None:
        super().__init__()
        dim = template.shape[-1]
        self.lanes = [lane for lane in lanes if isinstance(lane, Lane)]
        self.stored = [lane for lane in lanes if isinstance(lane, StoredLane)]
        self.combines = any(lane.read is not None and lane.selection.combines for lane in self.lanes)
        self.rows, self.group, self.heads, self.room = rows, group, heads, room
        self.k_tail = template.new_zeros(rows, heads, room, dim)
        self.v_tail = template.new_zeros(rows, heads, room, dim)
        # the compiled form computes all lanes in one call
        compiled = sparse_decode.form(template.device, template.dtype, group, dim) == "compiled"
        self.table = _job_table(self) if compiled else None
        self.filled = 0
        self.tail = torch.zeros(1, dtype=torch.long, device=template.device)
        self.selecting = self.counting = True
        # per row, summed over KV heads: K/V slots read by selection so far, and bytes read by scoring
        self.slots_selected = torch.zeros(rows, dtype=torch.long, device=template.device)
        self.score_bytes = [0] * rows

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.table is not None:
            # a copy has its tensors at other addresses
            self.table = _job_table(self)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> Any:
        """Append tokens; transformers hands the result to the attention function, see engine/attention.py."""
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
            if self.table is None or per_query_head(index):
                out[at], part = self._alone(lane, q_RHGD, index, scaling)
                if lse is not None:
                    lse[at] = part
            if lse is not None and index is not None and lane.selection.combines:
                out[at] = lane.selection.combine(out[at], lse[at], lane.state)
        for lane in self.stored:
            out[lane.rows, lane.heads] = lane.attend(q_RHGD[lane.rows, lane.heads], scaling, self.selecting)
        return out.view(rows, 1, queries, dim)

    def _choose(self, lane: Lane, q_RHGD: Tensor, scaling: float) -> Tensor | None:
        """The slots that a lane reads at this step, None for all; counts them."""
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

    def kept_tokens(self, row: int) -> tuple[int, int]:
        """Prompt tokens that a row holds, summed over KV heads, and the number of KV heads."""
        lanes = self._lanes_of(row)
        held = (lane.kept if lane.retained is None else lane.retained.count for lane in lanes)
        tokens = sum(count * lane.width for count, lane in zip(held, lanes, strict=True))
        return tokens, sum(lane.width for lane in lanes)

    def resident_bytes(self, row: int) -> tuple[int, int]:
        """Bytes that a row holds now, and those of them that no dtype of the model changes."""
        sizes = [lane.resident_bytes() for lane in self._lanes_of(row)]
        tail_heads = sum(lane.width for lane in self.lanes if lane.has(row))
        tail = tail_heads * self.appended(row) * self.slot_bytes
        return tail + sum(total for total, _ in sizes), sum(fixed for _, fixed in sizes)

    def held(self, row: int, steps: int) -> Iterator[Trace]:
        """What a row held in its last `steps` steps, lane by lane."""
        appended = np.arange(self.appended(row) - steps, self.appended(row)) + 1
        for lane in self._lanes_of(row):
            # stored beside the kept ones, and not read
            more = 0 if lane.retained is None else lane.retained.count - lane.kept
            if isinstance(lane, StoredLane):
                entries = lane.held[len(lane.held) - steps :]
                during, after, size = np.array(entries, dtype=np.int64).reshape(-1, 3).T
                yield Trace(lane.width, during + more, after + more, size)
            else:
                tokens = lane.kept + more + appended
                slots = lane.width * self.slot_bytes
                yield Trace(lane.width, tokens, tokens, lane.resident_bytes()[0] + slots * appended)

    def bytes_read(self, row: int, steps: int) -> Iterator[tuple[float, float]]:
        """Bytes that a row read in the last `steps` steps, and those of them that no dtype of the model changes.

        Yields:
            One pair for the plain lanes together, then one for each lane that stores its tokens.
        """
        first = self.appended(row) - steps
        _, scored = self.selected(row, first, steps)
        yield self.slots_read(row, first, steps) * self.slot_bytes + scored, 0
        yield from (lane.bytes_read(row) for lane in self.stored if lane.has(row))

    def appended(self, row: int) -> int:
        """Tokens appended to a row."""
        return self.filled

    def selected(self, row: int, first: int, steps: int) -> tuple[int, int]:
        """Slots that selections of a row read in `steps` steps after `first` appended tokens, and their scores' bytes.

        Rows in step count all their steps together.
        """
        return int(self.slots_selected[row]), self.score_bytes[row]

    def appended_sums(self, count: int) -> Tensor:
        """Sum of the keys and values of each of the first appended tokens, by row: `[R, count]` fp32."""
        k, v = (total(x[:, :, :count], (1, 3)) for x in (self.k_tail, self.v_tail))
        return k + v

    @property
    def slot_bytes(self) -> int:
        """Bytes of one key and one value."""
        return 2 * self.k_tail.shape[-1] * self.element

    @property
    def element(self) -> int:
        """Bytes of one number in the model's dtype."""
        return self.k_tail.element_size()

    @property
    def static(self) -> bool:
        """Whether each step does the same operations on the same memory."""
        return all(lane.store.static for lane in self.stored)

    def stop_counting(self) -> None:
        """Stop counting what is read."""
        self.counting = False
        for lane in self.stored:
            lane.counting = False

    def _lanes_of(self, row: int) -> list[Lane | StoredLane]:
        return [lane for lane in (*self.lanes, *self.stored) if lane.has(row)]

    def slots_read(self, row: int, first: int, steps: int) -> int:
        """K/V slots of all KV heads that a row read in `steps` steps after `first` appended tokens."""
        whole = [lane for lane in self.lanes if lane.read is None and lane.has(row)]
        heads = sum(lane.width for lane in whole)
        kept = sum(lane.kept * lane.width for lane in whole)
        appended = sum(range(first + 1, first + steps + 1))
        return self.selected(row, first, steps)[0] + steps * kept + heads * appended

    def _together(
        self, q_RHGD: Tensor, chosen: list[Tensor | None], table: np.ndarray, scaling: float
    ) -> tuple[Tensor, Tensor | None]:
        """All lanes in one call, except those with a list of slots per query head: their output is zero."""
        fields = dict(zip(cpu.FIELDS, table, strict=True))
        fields["tail"][:] = self.filled
        for lane in self.stored:
            fields["tail"][lane.rows, lane.heads] = 0
        indices = []  # keeps the tensors alive during the call
        for lane, index in zip(self.lanes, chosen, strict=True):
            at = lane.rows, lane.heads
            if per_query_head(index):
                fields["prefix"][at] = fields["tail"][at] = 0
            elif index is not None:
                indices.append(index.contiguous())
                fields["index"][at] = cpu.addresses(indices[-1], len(index))
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
        """All tokens of a question at once: they read everything kept, and each other causally."""
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
        """Does nothing: the constructor allocates the tail."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return self.room


@dataclass(frozen=True)
class Resident:
    """What one row holds.

    Attributes:
        kept: prompt tokens, mean over layers and KV heads.
        bytes: as measured.
        bf16: bytes with a bf16 model.
    """

    kept: float
    bytes: int
    bf16: int


class BatchCache(Cache):
    """The cache of one batch: the lanes of every row, then the tail.

    Args:
        layers: the model's.
        compressed: logical length of the compressed prompt, L, whatever each row keeps of it.
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
        return all(layer.static for layer in self.batch_layers)

    def resident(self, row: int) -> Resident:
        """What a row holds now, appended tokens included, measured from its tensors."""
        return resident_of(self.batch_layers, row)

    def bytes_read(self, row: int, steps: int) -> tuple[float, float]:
        """Bytes of K, V and auxiliary data that a row read per step, averaged over all `steps` so far.

        Returns:
            As measured, and with a bf16 model.
        """
        return mean_bytes(self.batch_layers, row, steps)

    def finite_tokens(self) -> Tensor:
        """Whether the keys and values of each appended token are finite in all layers, by row: bool `[R, T]`."""
        # counted on the device, because a CUDA graph appends without running this code
        count = int(self.batch_layers[0].tail)
        # infinities of opposite sign add up to NaN
        return torch.stack([layer.appended_sums(count) for layer in self.batch_layers]).sum(0).isfinite()

    def stop_counting(self) -> None:
        """Stop counting what is read: a timed step does nothing but decode."""
        for layer in self.batch_layers:
            layer.stop_counting()

    def set_selecting(self, selecting: bool) -> None:
        """Switch selection on or off: question tokens read everything kept."""
        for layer in self.batch_layers:
            layer.selecting = selecting


def resident_of(layers: Sequence[BatchLayer], row: int) -> Resident:
    """What a row holds in all layers."""
    kept = [layer.kept_tokens(row) for layer in layers]
    sizes = [layer.resident_bytes(row) for layer in layers]
    total, fixed = sum(size for size, _ in sizes), sum(size for _, size in sizes)
    bf16 = fixed + (total - fixed) * 2 // layers[0].element
    return Resident(sum(tokens for tokens, _ in kept) / sum(heads for _, heads in kept), total, bf16)


def held_of(layers: Sequence[BatchLayer], row: int, steps: int) -> Held | None:
    """What a row held in all layers over its last `steps` steps; None where there are none."""
    return Held.of(trace for layer in layers for trace in layer.held(row, steps))


def mean_bytes(layers: Sequence[BatchLayer], row: int, steps: int) -> tuple[float, float]:
    """Bytes that a row read in all layers, per step, and with a bf16 model; see `BatchCache.bytes_read`."""
    total = fixed = 0.0
    for layer in layers:
        # added one by one: the order of the sum decides the last digits
        for size, unchanged in layer.bytes_read(row, steps):
            total, fixed = total + size, fixed + unchanged
    return total / steps, (fixed + (total - fixed) * 2 / layers[0].element) / steps


def per_query_head(index: Tensor | None) -> bool:
    """Whether there is a list of slots per query head."""
    return index is not None and index.dim() == 4


def _job_table(layer: BatchLayer) -> np.ndarray:
    """Addresses and lengths for the compiled form `[9, rows, heads]`; each step fills in the rest."""
    table = cpu.new_table(layer.rows, layer.heads)
    fields = dict(zip(cpu.FIELDS, table, strict=True))
    for name, tail in (("k_tail", layer.k_tail), ("v_tail", layer.v_tail)):
        fields[name][:] = cpu.addresses(tail, layer.rows)
    for lane in layer.lanes:
        at, count = (lane.rows, lane.heads), lane.rows.stop - lane.rows.start
        for name, kept in (("k_prefix", lane.k_BHKD), ("v_prefix", lane.v_BHKD)):
            assert kept.stride(2) == kept.shape[3] and kept.stride(3) == 1
            fields[name][at] = cpu.addresses(kept, count)
        fields["prefix"][at] = lane.k_BHKD.shape[2]
        if isinstance(lane, PlacedLane):
            fields["index"][at], fields["indexed"][at] = cpu.addresses(lane.places_HS[None], count), lane.kept
        if lane.mask_HGK is not None:
            lane.mask_HGK = lane.mask_HGK.contiguous()
            fields["mask"][at] = cpu.addresses(lane.mask_HGK[None], count)
    return table
