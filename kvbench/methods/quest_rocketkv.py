"""Quest as RocketKV's paper runs it as a baseline."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kvbench.kernels.quest_scores import quest_scores
from kvbench.kernels.top_k import select_tokens
from kvbench.methods.base import Selection, Shape
from kvbench.methods.quest import Quest
from kvbench.methods.registry import register


@register("quest_rocketkv")
@dataclass(frozen=True, kw_only=True)
class QuestRocketKV(Quest):
    """Quest per KV head in every layer, under a budget of traffic: half of it for scoring, half for attention.

    Scoring reads two bounds per page, as much as one token's K and V, so that pages of ceil(2 S / budget) tokens cost
    half the budget at S prompt and new tokens; `page` fixes the size instead. The best pages are read until budget / 2
    tokens are: the last one is cut, since a page may hold more than that. No page is forced.
    """

    differs = (
        "RocketKV's code has no baselines, and its appendix leaves the page size open. Table 1's storage of 1 + 1/c, "
        "which counts each bound as half a token and twice over, gives a page of 2 c tokens, as here. The paper sums "
        "approximate attention over the group; here the bounds are summed."
    )
    source = (
        "Behnam et al. 2025, arXiv 2502.14051v3, appendix A.1 (no layer left dense) and A.3 (group-wise, the budget "
        "split evenly), Table 1"
    )
    budget_meaning = "traffic per step in tokens: half for scoring, half attended"

    positive: ClassVar[tuple[str, ...]] = ()

    heads: Literal["kv_head"] = "kv_head"
    page: int = 0
    dense_layers: int = 0

    def resolve(self, read: int, shape: Shape) -> tuple[Selection, list[int | None]]:
        total = shape.compressed + shape.max_new_tokens
        if read >= total:
            return self, [None] * shape.num_layers
        page = self.page or -(-2 * total // read)
        layers: list[int | None] = [max(1, read // 2)] * shape.num_layers
        return dataclasses.replace(self, page=page), [None] * self.dense_layers + layers[self.dense_layers :]

    def select(
        self, q_RHGD: Tensor, k_BHKD: Tensor, k_tail_RHMD: Tensor, length: Tensor, state: Any, tokens: int,
        scaling: float,
    ) -> Tensor:  # fmt: skip
        scores_RHP = quest_scores(q_RHGD, *state).sum(2)
        pages = torch.arange(scores_RHP.shape[-1], device=scores_RHP.device)
        # pages without a token have the bounds of an empty set
        scores_RHP = scores_RHP.masked_fill(pages * self.page >= length, -torch.inf)
        return select_tokens(scores_RHP, tokens, self.page, length)

    def slots(self, tokens: int, length: int) -> int:
        return min(tokens, length)
