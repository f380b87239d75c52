"""SnapKV: keeps the tokens that the last queries attend to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kvbench.kernels.pool import pool
from kvbench.kernels.top_k import top_k_mask
from kvbench.methods.base import BY_MODE, Eviction, Kept, LayerSnapshot, Quota
from kvbench.methods.registry import register


@register("snapkv")
@dataclass(frozen=True, kw_only=True)
class SnapKV(Eviction):
    """Keeps the observation window and the tokens it attends to most, after pooling.

    `heads=kv_head` sums the window's attention over the query heads of a group before pooling: one set per KV head.
    `heads=query_head` is the official form: one set per query head; their union is stored. `mode=kvpress` pools each
    query head first and then averages over the group, as kvpress 0.5.5 does with window 64, kernel 5, pool avg. A
    budget within the window keeps the last tokens of the prompt, where kvpress keeps any tokens of the window.
    """

    differs = (
        "The paper and its code pool per query head and expand K and V to query heads, which makes a GQA "
        "cache G times larger; here K and V stay per KV head, and by default a group shares one set. The "
        "code scores in the model's dtype after an fp32 softmax; here scores are fp32. Class defaults of "
        "the code (window 64, kernel 5, average) differ from its LongBench setting, which is the default "
        "here."
    )
    source = (
        "Li et al. 2024, arXiv 2404.14469, section 3; official LongBench setting window 32, kernel 7, max "
        "pooling, heads query_head"
    )
    budget_meaning = "tokens kept per KV head (per query head for heads=query_head), window included"
    bytes_formula = (
        "2 * keep * D * element; heads=query_head: keep is the union, plus G * keep for which query head "
        "reads what"
    )

    positive = ("window", "kernel")
    source_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"window": 32, "pool": "max", "kernel": 7},
        "kvpress": {"window": 64, "pool": "avg", "kernel": 5},
    }

    mode: Literal["paper", "kvpress"] = "paper"
    heads: Literal["kv_head", "query_head"] = "kv_head"
    window: int = BY_MODE
    pool: Literal["max", "avg"] = BY_MODE
    kernel: int = BY_MODE

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        """Pooled scores of the tokens before the window: `[H, T - w]`, or `[Q, T - w]` per query head."""
        window = snapshot.observed(self.window)
        raw_QT = snapshot.window_scores(window)[:, : snapshot.length - window]
        if self.heads == "query_head":
            return pool(raw_QT, self.kernel, self.pool)
        if self.mode == "kvpress":
            return pool(raw_QT, self.kernel, self.pool).unflatten(0, (snapshot.heads, -1)).mean(1)
        return pool(raw_QT, self.kernel, self.pool, group=len(raw_QT) // snapshot.heads)

    def keep(self, snapshot: LayerSnapshot, scores: Any, quota: Quota) -> Kept:
        early = scores.shape[-1]
        window = torch.arange(early, snapshot.length, device=scores.device)
        if quota.tokens <= len(window):
            return Kept([window[len(window) - quota.tokens :]] * snapshot.heads)
        chosen = self.choose(scores, quota.tokens - len(window), len(window))
        if self.heads == "query_head":
            everyone = chosen.new_ones(len(chosen), len(window))
            return Kept.per_query_head(torch.cat([chosen, everyone], dim=1), snapshot.heads)
        return Kept([torch.cat([row.nonzero()[:, 0], window]) for row in chosen])

    def choose(self, scores: Tensor, tokens: int, window: int) -> Tensor:
        """Marks the tokens to keep in addition to the window.

        Args:
            scores: what `scores` returned, `[H, T - w]` or `[Q, T - w]`.
            tokens: how many per row.
            window: tokens of the observation window, w.

        Returns:
            bool, shaped as `scores`.
        """
        return top_k_mask(scores, tokens)
