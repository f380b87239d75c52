"""Hybrid sparse attention, RocketKV's second stage, also on its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.kernels.hsa_scores import hsa_scores
from kvbench.kernels.page_bounds import page_bounds, update_page_bounds
from kvbench.methods.base import Selection, Shape
from kvbench.methods.registry import register
from kvbench.methods.rocket_budget import split_traffic


@register("hsa")
@dataclass(frozen=True, kw_only=True)
class HSA(Selection):
    """Scores pages by their bounds in the channels where the group's query is largest, reads the best tokens.

    The budget is traffic: one half pays for scoring, the other for attention. `page` and `channels` follow
    from it (0) or are given. Nothing is pinned unless `pin_recent` tokens are, on top of the budget.
    """

    source = "Behnam et al. 2025, arXiv 2502.14051v3, Algorithm 1; official temperature and rounding"
    budget_meaning = "traffic per step in tokens: half for scoring, half attended"
    bytes_formula = (
        "2 * T * D * element + (T + M if page == 1 else 2 * ceil((T + M) / page)) * D * element; "
        "bounds of pages, for pages of one a copy of K"
    )

    page: int = 0
    channels: int = 0
    pin_recent: int = 0

    def resolve(self, read: int, shape: Shape) -> tuple[Selection, list[int | None]]:
        total = shape.compressed + shape.max_new_tokens
        if read >= total:
            return self, [None] * shape.num_layers
        return self.resolve_for(total, read, shape.head_dim), [
            max(1, read // 2) + self.pin_recent
        ] * shape.num_layers

    def resolve_for(self, capacity: int, traffic: int, head_dim: int) -> HSA:
        """Page and channels for a cache of `capacity` tokens and a traffic budget."""
        page, channels = split_traffic(capacity, traffic, head_dim)
        return dataclasses.replace(self, page=self.page or page, channels=self.channels or channels)

    def prepare(self, k_BHKD: Tensor, v_BHKD: Tensor, rows: int, room: int) -> Tensor:
        """Channel-major page bounds `[R, H, 2 D, P]`, minima before maxima; a copy of K for pages of one."""
        pages = -(-(k_BHKD.shape[2] + room) // self.page)
        low, high = page_bounds(k_BHKD, self.page, pages)
        bounds = low if self.page == 1 else torch.cat([low, high], dim=-1)
        return bounds.transpose(-1, -2).expand(rows, -1, -1, -1).contiguous()

    def append(self, state: Any, k_RHD: Tensor, v_RHD: Tensor, slot: Tensor) -> None:
        dim = k_RHD.shape[-1]
        edges = state.transpose(-1, -2)
        if self.page == 1:
            edges.index_copy_(2, slot, k_RHD.unsqueeze(2))
        else:
            update_page_bounds(edges[..., :dim], edges[..., dim:], k_RHD, slot // self.page)

    def select(
        self, q_RHGD: Tensor, k_BHKD: Tensor, k_tail_RHMD: Tensor, length: Tensor, state: Any, tokens: int,
        scaling: float,
    ) -> Tensor:  # fmt: skip
        scores_RHP = hsa_scores(q_RHGD, state, self.channels, self.page, length)
        ranked = scores_RHP.sort(dim=-1, descending=True, stable=True).indices
        slots_RHN = (ranked[..., None] * self.page + torch.arange(self.page, device=ranked.device)).flatten(
            -2
        )
        pinned = length - self.pin_recent
        wanted = tokens - self.pin_recent
        # pages that may give less than all their tokens: the last one, and those of the pinned tokens
        short = 1 + (-(-self.pin_recent // self.page) + 1 if self.pin_recent else 0)
        slots_RHN = slots_RHN[..., : (-(-wanted // self.page) + short) * self.page]
        valid = slots_RHN < pinned
        place = torch.where(valid, valid.cumsum(-1) - 1, wanted).clamp(max=wanted)
        out = slots_RHN.new_full((*slots_RHN.shape[:-1], wanted + 1), -1)
        out = out.scatter(-1, place, torch.where(valid, slots_RHN, -1))[..., :wanted]
        if self.pin_recent:
            recent = pinned + torch.arange(self.pin_recent, device=out.device)
            out = torch.cat([out, recent.clamp(min=-1).expand(*out.shape[:-1], -1)], dim=-1)
        return out.int()

    def resident_bytes(self, state: Any) -> int:
        return state[0].numel() * state.element_size()

    def score_bytes(self, state: Any, length: int, element: int) -> int:
        return state.shape[1] * -(-length // self.page) * self.channels * element
