"""Lanes that store every token themselves: lossy formats, and evictions that go on while decoding.

Their attention runs on a copy in the model's dtype that is made at each step, or reads fp8 codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.engine.dropping import Dropping
from kvbench.engine.lanes import BaseLane, attend_many, distinct
from kvbench.kernels.rope import rotate
from kvbench.kernels.sparse_decode import FP8, sparse_decode
from kvbench.methods.base import Stored


@dataclass(kw_only=True)
class StoredLane(BaseLane):
    """A lane that stores its tokens itself.

    Attributes:
        store: keys and values, appended tokens included.
        kept: prompt tokens kept per KV head.
        template: an empty tensor of the model's dtype on its device.
        dropping: drops tokens from a rolling store while decoding, or None.
        rope: angles by which leading keys are rotated to close a gap, or None when they keep their positions.
    """

    store: Stored
    kept: int
    template: Tensor
    dropping: Dropping | None = None
    rope: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def __post_init__(self) -> None:
        self.filled = self.template.new_full((1,), self.kept, dtype=torch.long)
        # tokens dropped behind the leading keys, which are stored unrotated so that rounding does not add up
        self.gap = self.template.new_zeros(1, dtype=torch.long)
        self.counting = True
        #: by decode step: tokens per KV head that it could read, those and the bytes that it left
        self.held: list[tuple[int, int, int]] = []
        # per row: bytes read so far, and those of them that no dtype of the model changes
        self._bytes_read = self.template.new_zeros(2, self.rows.stop - self.rows.start, dtype=torch.float64)

    def resident_bytes(self) -> tuple[int, int]:
        """Bytes of one row now, and those of them that no dtype of the model changes."""
        stored, extra = self.store.bytes(), self.extra_bytes()
        queries = 0 if self.dropping is None else self.dropping.row_bytes
        return stored[0] + extra[0] + queries, stored[1] + extra[1]

    def bytes_read(self, row: int) -> tuple[float, float]:
        """Bytes that a row of the batch has read, and those of them that no dtype of the model changes."""
        total, fixed = self._bytes_read[:, row - self.rows.start].tolist()
        return total, fixed

    def append(self, k_RHND: Tensor, v_RHND: Tensor) -> None:
        """Store N new tokens."""
        k, v = self.store.append(k_RHND, v_RHND)
        # where tokens are dropped, auxiliary data is rebuilt at each step
        if self.read is not None and self.dropping is None:
            for n in range(k.shape[2]):
                self.selection.append(self.state, k[:, :, n], v[:, :, n], self.filled)
                self.filled += 1

    def attend(self, q_RHGD: Tensor, scaling: float, selecting: bool) -> Tensor:
        """Output `[R, H, G, D]` of one step."""
        (k, v, k_tail, v_tail, appended), fp8 = self._stored()
        mask, rows = self.mask_HGK, q_RHGD.shape[0]
        if not k.shape[2] or (mask is not None and mask.shape[2] > k.shape[2]):
            # kept tokens extend into the tail, beyond the mask, or there is no prefix for a list of slots
            k, v, mask = self._joined(rows, k, v, k_tail, v_tail)
            k_tail, v_tail, appended = k_tail[:, :, :1], v_tail[:, :, :1], appended * 0
        index = None
        if selecting and self.read is not None:
            if self.dropping is not None:
                self.state = self.selection.prepare(k, v, rows, 0)
            length = appended + k.shape[2]
            index = self.selection.select(q_RHGD, k, k_tail, length, self.state, self.read, scaling)
        out, lse = sparse_decode(q_RHGD, k, v, k_tail, v_tail, appended, scaling, index, mask, fp8)
        if index is not None and self.selection.combines:
            out = self.selection.combine(out, lse, self.state)
        during = self.store.count
        if selecting and self.counting:  # the question of a query-agnostic prompt is not a decode step
            self._count(index, k.shape[1])
        self._step(q_RHGD.unsqueeze(3), k, v, scaling, index, question=not selecting)
        if selecting and self.counting:
            self.held.append((during, self.store.count, self.resident_bytes()[0]))
        return out

    def _stored(self) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], FP8 | None]:
        """What `Stored.read` returns, or fp8 codes and their scales where nothing but the attention reads keys."""
        if self.dropping is None and not self.selection.reads_keys:
            codes = self.store.codes()
            if codes is not None:
                return codes
        return self._read(), None

    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        k, v, k_tail, v_tail, appended = self.store.read()
        if self.rope is not None:
            assert self.dropping is not None
            leading = min(self.dropping.eviction.leading, self.dropping.store.hold)
            k = torch.cat([rotate(k[:, :, :leading], *self.rope(self.gap)), k[:, :, leading:]], dim=2)
        return k, v, k_tail, v_tail, appended

    def attend_many(self, q_RHGND: Tensor, scaling: float) -> Tensor:
        """Output `[R, H, G, N, D]` of the N newest tokens at once, which read everything stored."""
        k, v, mask = self._joined(len(q_RHGND), *self._read()[:4])
        out = attend_many(q_RHGND, k, v, mask, scaling)
        self._step(q_RHGND, k, v, scaling, None, question=True)
        return out

    def _joined(
        self, rows: int, k: Tensor, v: Tensor, k_tail: Tensor, v_tail: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of every stored token `[R, H, C, D]`, and the mask over all of them."""
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
        """Count what a step reads: everything, or the selected slots' share of it and what scoring reads."""
        stored = self.store.bytes()
        for part, size in zip(self._bytes_read, stored, strict=True):
            if index is None:
                part += size
            else:
                part += distinct(index, self.store.count) * (size / (heads * self.store.count))
        if index is not None:
            self._bytes_read[0] += self.selection.score_bytes(
                self.state, self.store.count, self.template.element_size()
            )

    def _probabilities(self, q_RHGND: Tensor, k_RHCD: Tensor, scaling: float, index: Tensor | None) -> Tensor:
        """Attention of the N newest tokens to every slot `[R, H, G, N, C]`, fp32."""
        group, count, slots = q_RHGND.shape[2], q_RHGND.shape[3], k_RHCD.shape[2]
        # fp32, because products in bf16 tie
        logits = q_RHGND.flatten(2, 3).float() @ k_RHCD.float().transpose(-1, -2) * scaling
        logits = logits.unflatten(2, (group, count))
        seen = torch.ones(count, slots, dtype=torch.bool, device=k_RHCD.device).tril(slots - count)
        if index is not None:
            index = index.unsqueeze(2) if index.dim() == 3 else index
            read = torch.zeros(*index.shape[:3], slots + 1, dtype=torch.bool, device=index.device)
            read = read.scatter(-1, torch.where(index < 0, slots, index).long(), True)[..., :slots]
            seen = seen & read.unsqueeze(3)
        return logits.masked_fill(~seen, -torch.inf).softmax(-1)

    def _step(
        self, q_RHGND: Tensor, k: Tensor, v: Tensor, scaling: float, index: Tensor | None, question: bool
    ) -> None:
        """Let the eviction, if any, record the newest tokens and drop others."""
        if self.dropping is not None:
            self.dropping.appended(q_RHGND.shape[3], question)
            self.gap += self.dropping.step(
                q_RHGND, k, v, lambda: self._probabilities(q_RHGND, k, scaling, index)
            )
