"""Any selection behind an eviction that keeps one set of tokens per query head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.methods.base import Selection

#: dtype of the lists of slots that query heads keep
SLOT = torch.int32


@dataclass(frozen=True)
class HeadSet:
    """Query heads of a layer that keep equally many tokens: n of the K in the union of their KV head.

    Attributes:
        heads_N: their indices among the Q query heads.
        kv_N: the KV head of each.
        slots_Nn: slots of the tokens that each keeps, ascending, of dtype `SLOT`.
        union: K.
    """

    heads_N: Tensor
    kv_N: Tensor
    slots_Nn: Tensor
    union: int

    @property
    def fewer(self) -> int:
        """Tokens of the union that a query head of this set lacks."""
        return self.union - self.slots_Nn.shape[1]

    def queries(self, x_RHGX: Tensor) -> Tensor:
        """Data of these query heads, each as a group of one: `[R, N, 1, ..]`."""
        return x_RHGX.flatten(1, 2).index_select(1, self.heads_N).unsqueeze(2)

    def keys(self, x_RHX: Tensor) -> Tensor:
        """Data of KV heads, repeated for each of these query heads: `[R, N, ..]`."""
        return x_RHX.index_select(1, self.kv_N)

    def prefix(self, x_BHPD: Tensor) -> Tensor:
        """Keys or values of the tokens that each query head keeps, then of all after the union: `[B, N, P', D]`."""
        kept = x_BHPD[:, self.kv_N[:, None], self.slots_Nn.long()]
        return torch.cat([kept, self.keys(x_BHPD[:, :, self.union :])], dim=2)

    def union_slots(self, listed_RNn: Tensor) -> Tensor:
        """Slots of the union `[R, N, n]` from slots in the query heads' own lists; negative ones become -1."""
        kept = self.slots_Nn.shape[1]
        inside = listed_RNn.clamp(0, kept - 1).long()
        looked_up = self.slots_Nn.expand(len(listed_RNn), -1, -1).gather(-1, inside)
        return torch.where(
            listed_RNn < 0, -1, torch.where(listed_RNn < kept, looked_up, listed_RNn + self.fewer)
        )


class PerQueryHead(Selection):
    """Lets every query head choose among the tokens that it keeps.

    The selection sees each query head as a KV head with a group of one, whose cache is its kept tokens followed by all
    appended ones. That is what the official code of evictions per query head does, which expands K and V to query
    heads. Here only auxiliary data is per query head; K and V are stored once per KV head, as the union.
    """

    def __init__(self, selection: Selection, mask_HGK: Tensor) -> None:
        """Wraps a selection.

        Args:
            selection: any.
            mask_HGK: which query head keeps which token of the union.
        """
        self.selection, self.reads_keys = selection, selection.reads_keys
        self.head_sets = list(_head_sets(mask_HGK))

    @property
    def combines(self) -> bool:
        return self.selection.combines

    def prepare(self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, room: int) -> list[Any]:
        """Auxiliary data for each set of query heads."""
        return [
            self.selection.prepare(head_set.prefix(k_BHKD), head_set.prefix(v_BHKD), rows, room)
            for head_set in self.head_sets
        ]

    def append(self, state: Any, k_RHD: Tensor, v_RHD: Tensor, slot: Tensor) -> None:
        for head_set, part in zip(self.head_sets, state, strict=True):
            self.selection.append(part, head_set.keys(k_RHD), head_set.keys(v_RHD), slot - head_set.fewer)

    def select(
        self, q_RHGD: Tensor, k_BHKD: Tensor, k_tail_RHMD: Tensor, length: Tensor, state: Any, tokens: int,
        scaling: float,
    ) -> Tensor:  # fmt: skip
        rows, heads, group, _ = q_RHGD.shape
        chosen = []
        for head_set, part in zip(self.head_sets, state, strict=True):
            k, k_tail = k_BHKD, k_tail_RHMD
            if self.reads_keys:
                k, k_tail = head_set.prefix(k), head_set.keys(k_tail)
            q = head_set.queries(q_RHGD)
            index = self.selection.select(q, k, k_tail, length - head_set.fewer, part, tokens, scaling)
            chosen.append(head_set.union_slots(index.reshape(rows, len(head_set.heads_N), -1)))
        out = q_RHGD.new_full((rows, heads * group, max(x.shape[-1] for x in chosen)), -1, dtype=torch.int32)
        for head_set, slots in zip(self.head_sets, chosen, strict=True):
            out[:, head_set.heads_N, : slots.shape[-1]] = slots
        return out.unflatten(1, (heads, group))

    def combine(self, out_RHGD: Tensor, lse_RHG: Tensor, state: Any) -> Tensor:
        combined = out_RHGD.flatten(1, 2)
        for head_set, part in zip(self.head_sets, state, strict=True):
            out = self.selection.combine(head_set.queries(out_RHGD), head_set.queries(lse_RHG), part)
            combined = combined.index_copy(1, head_set.heads_N, out[:, :, 0])
        return combined.view(out_RHGD.shape)

    def resident_bytes(self, state: Any) -> int:
        """As `Selection.resident_bytes`, lists of slots included."""
        return self._list_bytes() + sum(self.selection.resident_bytes(part) for part in state)

    def fixed_bytes(self, state: Any) -> int:
        return self._list_bytes() + sum(self.selection.fixed_bytes(part) for part in state)

    def _list_bytes(self) -> int:
        return sum(head_set.slots_Nn.numel() * SLOT.itemsize for head_set in self.head_sets)

    def score_bytes(self, state: Any, length: int, element: int) -> int:
        """As `Selection.score_bytes`, for `length` tokens in the union."""
        pairs = zip(self.head_sets, state, strict=True)
        return sum(
            self.selection.score_bytes(part, length - head_set.fewer, element) for head_set, part in pairs
        )


def _head_sets(mask_HGK: Tensor) -> Iterator[HeadSet]:
    """Query heads grouped by the number of tokens they keep."""
    group, union = mask_HGK.shape[1:]
    mask_QK = mask_HGK.flatten(0, 1)
    counts = mask_QK.sum(-1).tolist()
    for count in sorted(set(counts)):
        heads = torch.tensor([n for n, c in enumerate(counts) if c == count], device=mask_HGK.device)
        slots = mask_QK[heads].nonzero()[:, 1].view(len(heads), count).to(SLOT)
        yield HeadSet(heads, heads // group, slots, union)
