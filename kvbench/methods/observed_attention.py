"""Observed attention: keeps the tokens with the highest mean attention."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.methods.base import Eviction, LayerSnapshot
from kvbench.methods.registry import register


@register("observed_attention")
@dataclass(frozen=True, kw_only=True)
class ObservedAttention(Eviction):
    """Keeps the tokens with the highest attention, averaged over the queries that see them and over the group."""

    differs = (
        "kvpress's reading of H2O: a mean over the queries that see a token instead of a sum, no recent "
        "window, no update while decoding."
    )
    source = "kvpress 0.5.5, ObservedAttentionPress; after H2O, Zhang et al. 2023, arXiv 2306.14048"
    budget_meaning = "tokens kept per KV head"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"attention_sum"})

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        assert snapshot.attention_sum_QT is not None
        sum_HT = snapshot.attention_sum_QT.unflatten(0, (snapshot.heads, -1)).mean(1)
        return sum_HT / torch.arange(snapshot.length, 0, -1, device=sum_HT.device)
