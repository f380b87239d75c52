"""Any selection behind an eviction that keeps a set of tokens per query head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.methods.base import Selection

#: of the lists of what each query head keeps
SLOT = torch.int32


@dataclass(frozen=True)
class Peers:
    """Query heads of a layer that keep equally many tokens, n of the K in the union of their KV head.

    Attributes:
        heads_N: which of the Q query heads.
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
        """Tokens by which the list of a query head is shorter than the union."""
        return self.union - self.slots_Nn.shape[1]

    def queries(self, x_RHGX: Tensor) -> Tensor:
        """What belongs to query heads, a group of one each: `[R, N, 1, ..]`."""
        return x_RHGX.flatten(1, 2).index_select(1, self.heads_N).unsqueeze(2)

    def keys(self, x_RHX: Tensor) -> Tensor:
        """What belongs to KV heads, once for each query head: `[R, N, ..]`."""
        return x_RHX.index_select(1, self.kv_N)

    def prefix(self, x_BHPD: Tensor) -> Tensor:
        """Keys or values of the tokens that each query head keeps, and of all behind the union: `[B, N, P', D]`."""
        mine = x_BHPD[:, self.kv_N[:, None], self.slots_Nn.long()]
        return torch.cat([mine, self.keys(x_BHPD[:, :, self.union :])], dim=2)

    def shared_slots(self, own_RNn: Tensor) -> Tensor:
        """Slots of the union `[R, N, n]` from slots in the lists of the query heads; negative ones stay."""
        kept = self.slots_Nn.shape[1]
        inside = own_RNn.clamp(0, kept - 1).long()
        looked_up = self.slots_Nn.expand(len(own_RNn), -1, -1).gather(-1, inside)
        return torch.where(own_RNn < 0, -1, torch.where(own_RNn < kept, looked_up, own_RNn + self.fewer))


class PerQueryHead(Selection):
    """Lets every query head choose among the tokens that it keeps.

    To the selection each query head is a KV head with a group of one, whose cache is its kept tokens and then all
    appended ones: what the official code of the query-head evictions has, which expands K and V to query heads. Here
    only auxiliary data is per query head; K and V are stored once per KV head, as the union.
    """

    def __init__(self, selection: Selection, mask_HGK: Tensor) -> None:
        """Takes the selection, and which query head keeps which token of the union."""
        self.selection, self.reads_keys = selection, selection.reads_keys
        self.peers = list(_peers(mask_HGK))

    @property
    def combines(self) -> bool:
        return self.selection.combines

    def prepare(self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, room: int) -> list[Any]:
        """Auxiliary data for each of `peers`."""
        return [self.selection.prepare(p.prefix(k_BHKD), p.prefix(v_BHKD), rows, room) for p in self.peers]

    def append(self, state: Any, k_RHD: Tensor, v_RHD: Tensor, slot: Tensor) -> None:
        for p, own in zip(self.peers, state, strict=True):
            self.selection.append(own, p.keys(k_RHD), p.keys(v_RHD), slot - p.fewer)

    def select(
        self, q_RHGD: Tensor, k_BHKD: Tensor, k_tail_RHMD: Tensor, length: Tensor, state: Any, tokens: int,
        scaling: float,
    ) -> Tensor:  # fmt: skip
        rows, heads, group, _ = q_RHGD.shape
        chosen = []
        for p, own in zip(self.peers, state, strict=True):
            k, k_tail = k_BHKD, k_tail_RHMD
            if self.reads_keys:
                k, k_tail = p.prefix(k), p.keys(k_tail)
            q = p.queries(q_RHGD)
            index = self.selection.select(q, k, k_tail, length - p.fewer, own, tokens, scaling)
            chosen.append(p.shared_slots(index.reshape(rows, len(p.heads_N), -1)))
        out = q_RHGD.new_full((rows, heads * group, max(x.shape[-1] for x in chosen)), -1, dtype=torch.int32)
        for p, slots in zip(self.peers, chosen, strict=True):
            out[:, p.heads_N, : slots.shape[-1]] = slots
        return out.unflatten(1, (heads, group))

    def combine(self, out_RHGD: Tensor, lse_RHG: Tensor, state: Any) -> Tensor:
        combined = out_RHGD.flatten(1, 2)
        for p, own in zip(self.peers, state, strict=True):
            part = self.selection.combine(p.queries(out_RHGD), p.queries(lse_RHG), own)
            combined = combined.index_copy(1, p.heads_N, part[:, :, 0])
        return combined.view(out_RHGD.shape)

    def resident_bytes(self, state: Any) -> int:
        """Lists of slots included."""
        return self._list_bytes() + sum(self.selection.resident_bytes(own) for own in state)

    def fixed_bytes(self, state: Any) -> int:
        return self._list_bytes() + sum(self.selection.fixed_bytes(own) for own in state)

    def _list_bytes(self) -> int:
        return sum(p.slots_Nn.numel() * SLOT.itemsize for p in self.peers)

    def score_bytes(self, state: Any, length: int, element: int) -> int:
        """As `Selection.score_bytes`, of `length` tokens in the union."""
        pairs = zip(self.peers, state, strict=True)
        return sum(self.selection.score_bytes(own, length - p.fewer, element) for p, own in pairs)


def _peers(mask_HGK: Tensor) -> Iterator[Peers]:
    """Query heads by how many tokens they keep."""
    group, union = mask_HGK.shape[1:]
    mask_QK = mask_HGK.flatten(0, 1)
    counts = mask_QK.sum(-1).tolist()
    for count in sorted(set(counts)):
        heads = torch.tensor([n for n, c in enumerate(counts) if c == count], device=mask_HGK.device)
        slots = mask_QK[heads].nonzero()[:, 1].view(len(heads), count).to(SLOT)
        yield Peers(heads, heads // group, slots, union)
