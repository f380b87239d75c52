"""Lanes with a storage of their own: lossy formats, and evictions that go on while decoding.

A plain lane refers to what prefill left and to the batch's tail; such a lane stores every token of its rows
itself. Its attention runs on a copy in the model's dtype that is made at each step, or reads fp8 codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kvbench.formats.tokenwise import Rolling
from kvbench.kernels.masked_attention import masked_attention
from kvbench.kernels.rope import rotate
from kvbench.kernels.sparse_decode import FP8, sparse_decode
from kvbench.methods.base import Eviction, ReadAll, Selection, Stored


@dataclass(kw_only=True)
class BaseLane:
    """What some rows of a batch read in one layer.

    Attributes:
        rows: the rows of the batch.
        heads: the KV heads; all of them, or one where heads keep different numbers of tokens.
        mask_HGK: which query head may read which kept token, or None.
        selection: what chooses the tokens of a step.
        read: tokens it chooses, None for all.
        state: its auxiliary data.
        retained: what is stored besides and not read, or None.
    """

    rows: slice
    heads: slice
    mask_HGK: Tensor | None = None
    selection: Selection = field(default_factory=ReadAll)
    read: int | None = None
    state: Any = None
    retained: Stored | None = None

    def extra_bytes(self) -> tuple[int, int]:
        """Bytes of one row beside what it reads as K and V, and those that no dtype of the model changes."""
        members = self.mask_HGK.numel() if self.mask_HGK is not None else 0
        retained, fixed = self.retained.bytes() if self.retained is not None else (0, 0)
        selection = unchanged = 0
        if self.read is not None:
            selection = self.selection.resident_bytes(self.state)
            unchanged = self.selection.fixed_bytes(self.state)
        return members + retained + selection, members + fixed + unchanged


@dataclass(kw_only=True)
class StoredLane(BaseLane):
    """A lane that stores its tokens itself.

    Attributes:
        store: keys and values, appended tokens included.
        kept: prompt tokens kept per KV head.
        like: an empty tensor of the model's dtype on its device.
        eviction: what drops tokens from a rolling store after each step, or None.
        rope: the angles by which leading keys turn to close a gap, or None when they stay at their positions.
    """

    store: Stored
    kept: int
    like: Tensor
    eviction: Eviction | None = None
    rope: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def __post_init__(self) -> None:
        self.filled = self.like.new_full((1,), self.kept, dtype=torch.long)
        # tokens dropped behind the leading ones; these are stored as they were, or rounding would add up
        self.gap = self.like.new_zeros(1, dtype=torch.long)
        self.counting = True
        # per row: bytes read so far, and those of them that are as many in any dtype of the model
        self.bytes_read = self.like.new_zeros(2, self.rows.stop - self.rows.start, dtype=torch.float64)

    def resident_bytes(self) -> tuple[int, int]:
        """Bytes of one row now, and those of them that are as many in any dtype of the model."""
        stored, extra = self.store.bytes(), self.extra_bytes()
        return stored[0] + extra[0], stored[1] + extra[1]

    def append(self, k_RHND: Tensor, v_RHND: Tensor) -> None:
        """Stores N new tokens."""
        k, v = self.store.append(k_RHND, v_RHND)
        # where tokens are dropped, auxiliary data is made anew at each step
        if self.read is not None and self.eviction is None:
            for n in range(k.shape[2]):
                self.selection.append(self.state, k[:, :, n], v[:, :, n], self.filled)
                self.filled += 1

    def attend(self, q_RHGD: Tensor, scaling: float, selecting: bool) -> Tensor:
        """Output `[R, H, G, D]` of one step."""
        (k, v, k_tail, v_tail, appended), fp8 = self._stored()
        mask, rows = self.mask_HGK, q_RHGD.shape[0]
        if not k.shape[2] or (mask is not None and mask.shape[2] > k.shape[2]):
            # kept tokens reach into the tail, which members do not, and a list of slots needs a prefix
            k, v, mask = self._joined(rows, k, v, k_tail, v_tail)
            k_tail, v_tail, appended = k_tail[:, :, :1], v_tail[:, :, :1], appended * 0
        index = None
        if selecting and self.read is not None:
            if self.eviction is not None:
                self.state = self.selection.prepare(k, v, rows, 0)
            length = appended + k.shape[2]
            index = self.selection.select(q_RHGD, k, k_tail, length, self.state, self.read, scaling)
        out, lse = sparse_decode(q_RHGD, k, v, k_tail, v_tail, appended, scaling, index, mask, fp8)
        if index is not None and self.selection.combines:
            out = self.selection.combine(out, lse, self.state)
        if selecting and self.counting:  # the question of a query-agnostic prompt is not a decode step
            self._count(index, k.shape[1])
        if self.eviction is not None:
            self._step(self._probabilities(q_RHGD.unsqueeze(3), k, scaling, index))
        return out

    def _stored(self) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], FP8 | None]:
        """Keys, values, those of the tail and how many: fp8 codes where only the attention reads them, or numbers."""
        if self.eviction is None and not self.selection.reads_keys:
            codes = self.store.codes()
            if codes is not None:
                return codes
        return self._read(), None

    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        k, v, k_tail, v_tail, appended = self.store.read()
        if self.rope is not None:
            assert self.eviction is not None and isinstance(self.store, Rolling)
            leading = min(self.eviction.leading, self.store.hold)
            k = torch.cat([rotate(k[:, :, :leading], *self.rope(self.gap)), k[:, :, leading:]], dim=2)
        return k, v, k_tail, v_tail, appended

    def attend_many(self, q_RHGND: Tensor, scaling: float) -> Tensor:
        """Output `[R, H, G, N, D]` of the N newest tokens at once, which read everything that is stored."""
        k, v, mask = self._joined(len(q_RHGND), *self._read()[:4])
        out = attend_many(q_RHGND, k, v, mask, scaling)
        if self.eviction is not None:
            self._step(self._probabilities(q_RHGND, k, scaling, None))
        return out

    def _joined(
        self, rows: int, k: Tensor, v: Tensor, k_tail: Tensor, v_tail: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of every token stored `[R, H, C, D]`, and the members among all of them."""
        end = self.store.count - k.shape[2]
        k, v = (
            torch.cat([prefix.expand(rows, -1, -1, -1), tail[:, :, :end]], dim=2)
            for prefix, tail in ((k, k_tail), (v, v_tail))
        )
        mask = self.mask_HGK
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (0, self.store.count - mask.shape[2]), value=True)
        return k, v, mask

    def _count(self, index: Tensor | None, heads: int) -> None:
        """Counts what a step reads: everything, or the selected slots' share of it and what scoring reads."""
        stored = self.store.bytes()
        for part, size in zip(self.bytes_read, stored, strict=True):
            if index is None:
                part += size
            else:
                part += distinct(index, self.store.count) * (size / (heads * self.store.count))
        if index is not None:
            self.bytes_read[0] += self.selection.score_bytes(
                self.state, self.store.count, self.like.element_size()
            )

    def _probabilities(self, q_RHGND: Tensor, k_RHCD: Tensor, scaling: float, index: Tensor | None) -> Tensor:
        """Attention of the N newest tokens to every slot `[R, H, G, N, C]`, fp32."""
        group, count, slots = q_RHGND.shape[2], q_RHGND.shape[3], k_RHCD.shape[2]
        # in fp32: products in bf16 tie
        logits = q_RHGND.flatten(2, 3).float() @ k_RHCD.float().transpose(-1, -2) * scaling
        logits = logits.unflatten(2, (group, count))
        seen = torch.ones(count, slots, dtype=torch.bool, device=k_RHCD.device).tril(slots - count)
        if index is not None:
            index = index.unsqueeze(2) if index.dim() == 3 else index
            read = torch.zeros(*index.shape[:3], slots + 1, dtype=torch.bool, device=index.device)
            read = read.scatter(-1, torch.where(index < 0, slots, index).long(), True)[..., :slots]
            seen = seen & read.unsqueeze(3)
        return logits.masked_fill(~seen, -torch.inf).softmax(-1)

    def _step(self, probs_RHGNC: Tensor) -> None:
        assert self.eviction is not None and isinstance(self.store, Rolling)
        drop = max(0, self.store.count - self.store.hold)
        gone_RHE = self.eviction.step(probs_RHGNC, self.store.carried_RHC, drop)
        if drop:
            assert gone_RHE is not None
            self.store.drop(gone_RHE)
            self.gap += drop


def attend_many(
    q_RHGND: Tensor, k_RHCD: Tensor, v_RHCD: Tensor, mask_HGC: Tensor | None, scaling: float
) -> Tensor:
    """Attention of the N newest of C tokens, causal among them: `[R, H, G, N, D]`."""
    heads, group, count = q_RHGND.shape[1:4]
    slots = k_RHCD.shape[2]
    visible = torch.ones(count, slots, dtype=torch.bool, device=k_RHCD.device).tril(slots - count)
    visible = visible.expand(heads, group, -1, -1)
    if mask_HGC is not None:
        visible = visible & mask_HGC[:, :, None, :]
    out = masked_attention(q_RHGND.flatten(1, 2), k_RHCD, v_RHCD, scaling, visible.flatten(0, 1))
    return out.view(q_RHGND.shape)


def distinct(index: Tensor, capacity: int) -> Tensor:
    """Slots that are read at least once per row, summed over KV heads: `[R]`."""
    if index.dim() == 3:
        return (index >= 0).sum(dim=(1, 2))
    seen = torch.zeros(*index.shape[:2], capacity + 1, dtype=torch.bool, device=index.device)
    flat = torch.where(index < 0, capacity, index).flatten(2).long()
    return seen.scatter_(2, flat, True)[..., :capacity].sum(dim=(1, 2))
