"""Caches of many cells whose tokens are packed into passes (of the sizes that `sizes.py` allows).

A pass holds one token per row of its matrix products. Which cell a token belongs to, and how many tokens each cell
has in a pass, is free: only attention and the per-step state of methods depend on it, and these go step by step
inside each layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from kvbench.engine.batch import BatchLayer, Resident, held_of, mean_bytes, per_query_head, resident_of
from kvbench.engine.finite import total
from kvbench.engine.held import Held
from kvbench.engine.lanes import Lane, attend_many, distinct
from kvbench.engine.stored import StoredLane
from kvbench.kernels import sparse_decode
from kvbench.kernels.sparse_decode import cpu


class Pass:
    """The N tokens of one forward pass; those of one row of the cache stand together, in order.

    Args:
        rows: row of the cache of each token.
        slots: tokens that its row has appended before it.
        device: of the model.
    """

    def __init__(self, rows: Sequence[int], slots: Sequence[int], device: torch.device) -> None:
        self.rows, self.slots = list(rows), list(slots)
        self.rows_N = torch.tensor(self.rows, device=device)
        self.slots_N = torch.tensor(self.slots, device=device)
        ends = [n for n in range(1, len(rows)) if rows[n] != rows[n - 1]] + [len(rows)]
        starts = [0, *ends[:-1]]
        #: per row of the cache in the pass: the row and its tokens
        self.segments = [(rows[low], range(low, high)) for low, high in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class Question:
    """A pass with the same T tokens for some rows, which read everything they kept."""

    rows: Sequence[int]
    tokens: int


class PackedLayer(BatchLayer):
    """One layer of many cells, one row each, which need not advance in step.

    Args:
        lanes: of all rows and KV heads; a lane has one row. Lanes may share the state of a selection as `prepare`
            made it: all but the first get a copy.
        rows: rows R.
        group: query heads per KV head.
        template: a tensor with the dtype, device and head dimension of the keys.
        heads: KV heads.
        room: tokens that may be appended to a row.
        use: called before the layer of the snapshot is read.
    """

    def __init__(
        self, lanes: Sequence[Lane | StoredLane], rows: int, group: int, template: Tensor, heads: int, room: int,
        use: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        super().__init__(lanes, rows, group, template, heads, room)
        self.use = use
        self.of_row: list[list[Lane | StoredLane]] = [[] for _ in range(rows)]
        for lane in lanes:
            self.of_row[lane.rows.start].append(lane)
        taken: list[Any] = []
        for lane in self.lanes:
            if lane.read is None:
                continue
            if any(lane.state is state for state in taken):
                lane.state = copy.deepcopy(lane.state)
            taken.append(lane.state)
        #: appended tokens of each row
        self.counts = [0] * rows
        # by row and appended token: K/V slots read by selection, summed over KV heads, and bytes read by scoring
        self.slots_at = torch.zeros(rows, room, dtype=torch.long, device=template.device)
        self.scored_at = [[0] * room for _ in range(rows)]
        self.current: Pass | Question | None = None
        #: queries of passes of tokens, where a caller wants them
        self.queries_NHGD: list[Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        now = self.current
        if isinstance(now, Question):
            for n, row in enumerate(now.rows):
                at = slice(self.counts[row], self.counts[row] + now.tokens)
                self.k_tail[row, :, at], self.v_tail[row, :, at] = key_states[n], value_states[n]
        elif isinstance(now, Pass):
            count = len(now.rows)
            self.k_tail[now.rows_N, :, now.slots_N] = key_states[:count, :, 0]
            self.v_tail[now.rows_N, :, now.slots_N] = value_states[:count, :, 0]
        return self, self

    def attend(self, q_BQTD: Tensor, scaling: float) -> Tensor:
        now = self.current
        self.use()
        q_BHGTD = q_BQTD.unflatten(1, (self.heads, self.group))
        if isinstance(now, Question):
            out_BHGTD = q_BHGTD.new_zeros(q_BHGTD.shape)
            for n, row in enumerate(now.rows):
                self._read_question(row, now.tokens, q_BHGTD[n : n + 1], out_BHGTD[n : n + 1], scaling)
            return out_BHGTD.flatten(1, 2).transpose(1, 2)
        assert now is not None
        out = q_BQTD.new_zeros(q_BQTD.shape[0], 1, *q_BQTD.shape[1::2])
        q_NHGD = q_BHGTD[: len(now.rows), :, :, 0].contiguous()
        if self.queries_NHGD is not None:
            self.queries_NHGD.append(q_NHGD)
        out[: len(now.rows), 0] = self._attend_pass(now, q_NHGD, scaling).flatten(1, 2)
        for row, tokens in now.segments:
            self.counts[row] += len(tokens)
        return out

    def _attend_pass(self, now: Pass, q_NHGD: Tensor, scaling: float) -> Tensor:
        """Output `[N, H, G, D]`: each token attends to its row's cache as it is after that token."""
        out = torch.empty_like(q_NHGD)
        table = fields = None
        if self.table is not None:
            table = self.table[:, now.rows].copy()
            fields = dict(zip(cpu.FIELDS, table, strict=True))
            fields["tail"][:] = [[slot + 1] for slot in now.slots]
            # of lanes whose kept tokens stay where the prompt has them
            np.add(fields["indexed"], fields["tail"], out=fields["indexed"], where=fields["indexed"] >= 0)
        # outputs that the common call does not compute, and the lists of slots, alive during the call
        apart: list[tuple[int, slice, Tensor]] = []
        indices: list[Tensor] = []
        for row, tokens in now.segments:
            for lane in self.of_row[row]:
                if table is not None and isinstance(lane, Lane) and lane.read is None:
                    continue
                heads = lane.heads
                for n in tokens:
                    q = q_NHGD[n : n + 1, heads]
                    if isinstance(lane, StoredLane):
                        slot = slice(now.slots[n], now.slots[n] + 1)
                        lane.append(self.k_tail[row, None, heads, slot], self.v_tail[row, None, heads, slot])
                        apart.append((n, heads, lane.attend(q, scaling, True)[0]))
                    else:
                        index = self._select(lane, row, now.slots[n], now.slots_N[n : n + 1], q, scaling)
                        combines = index is not None and lane.selection.combines
                        if fields is not None and not combines and not per_query_head(index):
                            if index is not None:
                                indices.append(index.contiguous())
                                fields["index"][n, heads] = cpu.addresses(indices[-1], 1)[0]
                                fields["indexed"][n, heads] = index.shape[2]
                            continue
                        apart.append(
                            (n, heads, self._attend_alone(lane, row, now.slots_N[n], q, index, scaling))
                        )
                    if fields is not None:
                        fields["indexed"][n, heads] = 0
        if table is not None:
            q_JGD = q_NHGD.float().view(-1, self.group, q_NHGD.shape[-1])
            found, _ = cpu.decode_jobs(q_JGD, table, scaling, self.k_tail.dtype)
            out = found.view(q_NHGD.shape).to(q_NHGD.dtype)
        for n, heads, part in apart:
            out[n, heads] = part
        return out

    def _select(
        self, lane: Lane, row: int, slot: int, slot_1: Tensor, q_1HGD: Tensor, scaling: float
    ) -> Tensor | None:
        """Account for a token, and the slots that it reads: None for all."""
        if lane.read is None:
            return None
        k, v = (x[row, None, lane.heads, slot] for x in (self.k_tail, self.v_tail))
        lane.selection.append(lane.state, k, v, slot_1 + lane.kept)
        k_tail = self.k_tail[row, None, lane.heads]
        length = slot_1[0] + lane.kept + 1
        index = lane.selection.select(q_1HGD, lane.k_BHKD, k_tail, length, lane.state, lane.read, scaling)
        element = lane.k_BHKD.element_size()
        self.scored_at[row][slot] += lane.selection.score_bytes(lane.state, lane.kept + slot + 1, element)
        self.slots_at[row, slot] += distinct(index, lane.kept + self.room)[0]
        return lane.places(index)

    def _attend_alone(
        self, lane: Lane, row: int, slot: Tensor, q_1HGD: Tensor, index: Tensor | None, scaling: float
    ) -> Tensor:
        k_tail, v_tail = (x[row, None, lane.heads] for x in (self.k_tail, self.v_tail))
        out, lse = sparse_decode.sparse_decode(
            q_1HGD, lane.k_BHKD, lane.v_BHKD, k_tail, v_tail, slot + 1, scaling, index, lane.mask_HGK
        )
        if index is not None and lane.selection.combines:
            out = lane.selection.combine(out, lse, lane.state)
        return out[0]

    def _read_question(
        self, row: int, tokens: int, q_1HGTD: Tensor, out_1HGTD: Tensor, scaling: float
    ) -> None:
        before, end = self.counts[row], self.counts[row] + tokens
        for lane in self.of_row[row]:
            heads = lane.heads
            k_tail, v_tail = (x[row, None, heads, :end] for x in (self.k_tail, self.v_tail))
            if isinstance(lane, StoredLane):
                lane.append(k_tail[:, :, before:], v_tail[:, :, before:])
                out_1HGTD[:, heads] = lane.attend_many(q_1HGTD[:, heads], scaling)
                continue
            self._append(lane, row, range(before, end))
            k, v = (torch.cat(pair, dim=2) for pair in zip(lane.compact(), (k_tail, v_tail), strict=True))
            members = lane.mask_HGK
            if members is not None:
                members = torch.nn.functional.pad(members, (0, end), value=True)
            out_1HGTD[:, heads] = attend_many(q_1HGTD[:, heads], k, v, members, scaling)
        self.counts[row] = end

    def _append(self, lane: Lane, row: int, slots: range) -> None:
        """Update the state of a selection for tokens of the tail."""
        if lane.read is None:
            return
        for slot in slots:
            k, v = (x[row, None, lane.heads, slot] for x in (self.k_tail, self.v_tail))
            lane.selection.append(lane.state, k, v, self.tail + lane.kept + slot)

    def rewinds(self, row: int) -> bool:
        """Whether a row's appended tokens can be taken back: no lane stores them itself."""
        return not any(isinstance(lane, StoredLane) for lane in self.of_row[row])

    def rewind(self, row: int, count: int, stored: Sequence[Lane | StoredLane] = ()) -> None:
        """Return a row to its state after its first `count` appended tokens.

        Args:
            row: the row.
            count: 0 for a row with lanes that store their tokens.
            stored: for such a row, its lanes as they were made.
        """
        assert count == 0 or self.rewinds(row)
        self.use()
        fresh = iter([lane for lane in stored if isinstance(lane, StoredLane)])
        lanes = [next(fresh) if isinstance(lane, StoredLane) else lane for lane in self.of_row[row]]
        self.of_row[row] = lanes
        self.stored = [lane for rest in self.of_row for lane in rest if isinstance(lane, StoredLane)]
        for lane in lanes:
            if isinstance(lane, Lane) and lane.read is not None:
                lane.state = lane.selection.prepare(*lane.compact(), 1, self.room)
                self._append(lane, row, range(count))
        self.counts[row] = count
        self.slots_at[row, count:] = 0
        self.scored_at[row][count:] = [0] * (self.room - count)

    def appended(self, row: int) -> int:
        return self.counts[row]

    def selected(self, row: int, first: int, steps: int) -> tuple[int, int]:
        at = slice(first, first + steps)
        return int(self.slots_at[row, at].sum()), sum(self.scored_at[row][at])

    def row_sums(self, row: int, count: int) -> Tensor:
        """Sum of the keys and values of each of the first tokens appended to a row: `[count]` fp32."""
        return sum(total(x[row, :, :count], (0, 2)) for x in (self.k_tail, self.v_tail))  # type: ignore[return-value]


class PackedCache(Cache):
    """The cache of some cells, one row each.

    Args:
        layers: the model's.
        compressed: logical length of the compressed prompt, L, whatever each row keeps of it.
    """

    def __init__(self, layers: list[PackedLayer], compressed: int) -> None:
        self.packed_layers, self.compressed, self.position = layers, compressed, 0
        super().__init__(layers=list(layers))

    def begin(self, current: Pass | Question) -> None:
        """Say what the next forward pass holds."""
        for layer in self.packed_layers:
            layer.current = current
        # transformers asks for one position per pass, for masks that are compared with a causal one
        counts = (
            current.slots if isinstance(current, Pass) else [self.packed_layers[0].counts[current.rows[0]]]
        )
        self.position = self.compressed + max(counts)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Position of the first of the tokens that are fed together, the largest of the pass."""
        return self.position

    def resident(self, row: int) -> Resident:
        """What a row holds now, appended tokens included, measured from its tensors."""
        return resident_of(self.packed_layers, row)

    def held(self, row: int, steps: int) -> Held | None:
        """What a row held over its last `steps` steps."""
        return held_of(self.packed_layers, row, steps)

    def bytes_read(self, row: int, steps: int) -> tuple[float, float]:
        """Bytes of K, V and auxiliary data that a row read per step, averaged over its last `steps` steps.

        Returns:
            As measured, and with a bf16 model.
        """
        return mean_bytes(self.packed_layers, row, steps)

    def finite_tokens(self, row: int, count: int) -> Tensor:
        """Whether keys and values of the first tokens appended to a row are finite in all layers: bool `[count]`."""
        # infinities of opposite sign add up to NaN
        return torch.stack([layer.row_sums(row, count) for layer in self.packed_layers]).sum(0).isfinite()
