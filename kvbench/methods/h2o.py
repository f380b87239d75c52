"""H2O: heavy hitters and recent tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.kernels.top_k import lowest, top_k
from kvbench.methods.base import Eviction, Kept, LayerSnapshot, Quota, StepView
from kvbench.methods.registry import register


@register("h2o")
@dataclass(frozen=True, kw_only=True)
class H2O(Eviction):
    """Keeps the most recent tokens and, of the others, those that received the most attention from all queries.

    `recent` is the share of the budget for recent tokens, half in the official examples. Attention is summed over the
    group of a KV head; the official code has one query head per KV head. Decode steps add to the sums and evict, so
    that the cache never holds more than the budget.
    """

    differs = (
        "The official code has two forms. One (`utils_real_drop`) drops tokens, with absolute numbers of heavy and "
        "recent ones; with the same numbers it keeps what is kept here. The other (`utils_hh`) simulates eviction "
        "with masks, with shares of the prompt's length (heavy 10 %, recent 10 %). KVCache-Factory's H2O has no "
        "decode-time update."
    )
    source = "Zhang et al. 2023, arXiv 2306.14048, Algorithm 1; the official examples give both equally many"
    budget_meaning = "tokens held per KV head, recent ones included, also while decoding"
    bytes_formula = "2 * keep * D * element + 4 * keep; the sums are stored too"

    carries: ClassVar[Mapping[str, torch.dtype]] = MappingProxyType({"sums": torch.float32})

    recent: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent <= 1:
            raise UserError(f"recent: {self.recent} is not in [0, 1]")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"attention_sum"})

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        """Accumulated attention `[H, T]`."""
        assert snapshot.attention_sum_QT is not None
        return snapshot.attention_sum_QT.unflatten(0, (snapshot.heads, -1)).sum(1)

    def keep(self, snapshot: LayerSnapshot, scores: Any, quota: Quota) -> Kept:
        recent = int(quota.tokens * self.recent)
        old = snapshot.length - recent
        heavy = top_k(scores[:, :old], quota.tokens - recent)
        newest = torch.arange(old, snapshot.length, device=heavy.device)
        return Kept.uniform(torch.cat([heavy, newest.expand(snapshot.heads, -1)], dim=-1))

    def carry(self, snapshot: LayerSnapshot, scores: Any, kept: Kept) -> dict[str, list[Tensor]]:
        return {"sums": [row[positions] for row, positions in zip(scores, kept.positions, strict=True)]}

    def step(self, view: StepView, drop: int) -> Tensor:
        sums_RHC = view.carried["sums"]
        sums_RHC += view.probs_RHGNC.sum((2, 3))
        slots = sums_RHC.shape[-1]
        recent = int((slots - drop) * self.recent)
        return lowest(sums_RHC[..., : slots - recent], drop)
