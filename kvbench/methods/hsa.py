"""Hybrid sparse attention: RocketKV's second stage, also usable alone."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.kernels.hsa_scores import hsa_scores, hsa_select
from kvbench.kernels.page_bounds import page_bounds, update_page_bounds
from kvbench.kernels.top_k import select_tokens
from kvbench.methods.base import Selection, Shape
from kvbench.methods.registry import register
from kvbench.methods.rocket_budget import split_traffic


@register("hsa")
@dataclass(frozen=True, kw_only=True)
class HSA(Selection):
    """Scores pages by their bounds in the channels where the group's query is largest, and reads the best tokens.

    The budget is traffic: half of it pays for scoring, half for attention. `page` and `channels` follow from the budget
    where they are 0. No recent tokens are pinned by default; `pin_recent` tokens come on top of the budget.
    """

    differs = (
        "The paper's Algorithm 1 has no temperature, takes the maximum where the group's query sums to 0, "
        "and shows whole pages; both official codes divide by SparQ's temperature, take the minimum there, "
        "and choose tokens, so that one page is cut. kvbench follows the code."
    )
    source = "Behnam et al. 2025, arXiv 2502.14051v3, Algorithm 1; official temperature and rounding"
    budget_meaning = "traffic per step in tokens: half for scoring, half attended"
    bytes_formula = (
        "2 * T * D * element + (T + M if page == 1 else 2 * ceil((T + M) / page)) * D * element; the second "
        "term is the bounds of pages, or a copy of K for pages of one"
    )

    version = 2
    reads_keys = False

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
        """The selection with page and channels for a cache of `capacity` tokens and a traffic budget."""
        page, channels = split_traffic(capacity, traffic, head_dim)
        return dataclasses.replace(
            self, page=self.page or page, channels=min(self.channels or channels, head_dim)
        )

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
        # the kernels assume the usual logit scaling, 1 / sqrt(D)
        factor = scaling * q_RHGD.shape[-1] ** 0.5
        if not math.isclose(factor, 1):
            q_RHGD = q_RHGD * factor
        if not self.pin_recent:
            return hsa_select(q_RHGD, state, self.channels, self.page, length, tokens)
        # pinned tokens count in the softmax, not in the choice
        scores_RHP = hsa_scores(q_RHGD, state, self.channels, self.page, length)
        older = (length - self.pin_recent).clamp(min=0)
        chosen = select_tokens(scores_RHP, tokens - self.pin_recent, self.page, older)
        recent = length - self.pin_recent + torch.arange(self.pin_recent, device=chosen.device)
        recent = recent.clamp(min=-1).int().expand(*chosen.shape[:-1], -1)
        return torch.cat([chosen, recent], dim=-1)

    def resident_bytes(self, state: Any) -> int:
        return state[0].numel() * state.element_size()

    def score_bytes(self, state: Any, length: int, element: int) -> int:
        return state.shape[1] * -(-length // self.page) * self.channels * element

    def append_bytes(self, head_dim: int, element: int) -> tuple[int, int]:
        if self.page == 1:
            return 0, head_dim * element
        return 2 * head_dim * element, 2 * head_dim * element
