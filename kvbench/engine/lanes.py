"""Lanes: the part of a cell's cache that lies in one layer, read by the cell's rows of a batch.

A plain lane has a prefix, which prefill left (a reference to the snapshot where nothing was evicted), and shares
the batch's tail for the tokens appended since. A placed lane refers to the snapshot also for what an eviction left,
and has the places of the kept tokens there. `stored.py` has the lanes that store every token themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kvbench.kernels.masked_attention import masked_attention
from kvbench.methods.base import LayerSnapshot, ReadAll, Selection, Stored


@dataclass(kw_only=True)
class BaseLane:
    """What some rows of a batch read in one layer.

    Attributes:
        rows: rows of the batch.
        heads: KV heads; all of them, or one where heads keep different numbers of tokens.
        mask_HGK: which query head may read which kept token, or None.
        selection: chooses the tokens of a step.
        read: tokens it chooses, None for all.
        state: its auxiliary data.
        retained: tokens that are stored but not read, or None.
    """

    rows: slice
    heads: slice
    mask_HGK: Tensor | None = None
    selection: Selection = field(default_factory=ReadAll)
    read: int | None = None
    state: Any = None
    retained: Stored | None = None

    @property
    def width(self) -> int:
        """Number of KV heads."""
        return self.heads.stop - self.heads.start

    def has(self, row: int) -> bool:
        """Whether a row of the batch is one of its rows."""
        return self.rows.start <= row < self.rows.stop

    def extra_bytes(self) -> tuple[int, int]:
        """Bytes of one row besides the K and V that it reads, and those that no dtype of the model changes."""
        members = self.mask_HGK.numel() if self.mask_HGK is not None else 0
        retained, fixed = self.retained.bytes() if self.retained is not None else (0, 0)
        selection = unchanged = 0
        if self.read is not None:
            selection = self.selection.resident_bytes(self.state)
            unchanged = self.selection.fixed_bytes(self.state)
        return members + retained + selection, members + fixed + unchanged


@dataclass(kw_only=True)
class Lane(BaseLane):
    """A lane that refers to its kept tokens and to the batch's tail.

    Attributes:
        k_BHKD: kept keys, B = 1 when the rows share them.
        v_BHKD: kept values.
    """

    k_BHKD: Tensor
    v_BHKD: Tensor

    @property
    def kept(self) -> int:
        """Prompt tokens kept per KV head."""
        return self.k_BHKD.shape[2]

    def resident_bytes(self) -> tuple[int, int]:
        """Bytes of one row without the tail, and those of them that no dtype of the model changes."""
        total, fixed = self.extra_bytes()
        numbers = self.width * self.kept * (self.k_BHKD.shape[3] + self.v_BHKD.shape[3])
        return numbers * self.k_BHKD.element_size() + total, fixed

    def compact(self) -> tuple[Tensor, Tensor]:
        """Kept keys and values `[B, H, K, D]` in order of their slots."""
        return self.k_BHKD, self.v_BHKD

    def places(self, index: Tensor) -> Tensor:
        """Where slots lie that a selection chose: in `k_BHKD`, and those of the tail behind it."""
        return index


@dataclass(kw_only=True)
class PlacedLane(Lane):
    """A lane that refers to the whole prompt, with the places of the kept tokens in it.

    It counts the bytes of the kept tokens alone, as a cache does that holds nothing else.

    Attributes:
        places_HS: where each slot lies, int32 `[H, K + room]`, contiguous: positions of the K kept tokens in the
            prompt, then the places of the appended ones behind it.
        held: K.
    """

    places_HS: Tensor
    held: int

    @classmethod
    def of(cls, positions_HK: Tensor, room: int, **fields: Any) -> PlacedLane:
        """A lane for the tokens kept at some positions; `room` tokens may be appended."""
        length = fields["k_BHKD"].shape[2]
        behind = torch.arange(length, length + room, device=positions_HK.device).expand(len(positions_HK), -1)
        places_HS = torch.cat([positions_HK, behind], dim=1).int()
        return cls(**fields, places_HS=places_HS, held=positions_HK.shape[1])

    @property
    def kept(self) -> int:
        return self.held

    def compact(self) -> tuple[Tensor, Tensor]:
        at = self.places_HS[:, : self.held].long()[None, :, :, None]
        k, v = (x.gather(2, at.expand(-1, -1, -1, x.shape[3])) for x in (self.k_BHKD, self.v_BHKD))
        return k, v

    def places(self, index: Tensor) -> Tensor:
        found = self.places_HS.gather(1, index[0].clamp(min=0).flatten(1).long()).view(index.shape)
        return torch.where(index < 0, index, found)


def plain_lane(snapshot: LayerSnapshot, rows: slice) -> Lane:
    """A lane that keeps and reads everything."""
    heads = slice(0, snapshot.heads)
    return Lane(rows=rows, heads=heads, k_BHKD=snapshot.k_HTD[None], v_BHKD=snapshot.v_HTD[None])


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
