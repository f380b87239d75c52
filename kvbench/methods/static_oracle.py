"""Static oracle: the upper bound of eviction after prefill."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from kvbench.kernels.top_k import top_k, top_k_mask
from kvbench.methods.base import Eviction, Kept, LayerSnapshot, Quota
from kvbench.methods.registry import register


@register("static_oracle")
@dataclass(frozen=True, kw_only=True)
class StaticOracle(Eviction):
    """Keeps the tokens that dense's own answer attends to most, as if the answer were known after prefill.

    The answer is decoded densely first, and its decode steps' attention is summed per key. No eviction of as many
    tokens recalls more of that attention: `heads=kv_head` sums over the group, one set per KV head; `heads=query_head`
    keeps a set per query head and stores their union. Attention is not the score of a task: another set may answer
    better.
    """

    source = "exact; no paper's method"
    budget_meaning = "tokens kept per KV head (per query head for heads=query_head)"
    bytes_formula = (
        "2 * keep * D * element; heads=query_head: keep is the union, plus G * keep for which query head "
        "reads what"
    )

    heads: Literal["kv_head", "query_head"] = "kv_head"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"answer"})

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        """Attention from the answer `[H, T]`, or `[Q, T]` per query head."""
        assert snapshot.answer_sum_QT is not None
        if self.heads == "query_head":
            return snapshot.answer_sum_QT
        return snapshot.answer_sum_QT.unflatten(0, (snapshot.heads, -1)).sum(1)

    def keep(self, snapshot: LayerSnapshot, scores: Any, quota: Quota) -> Kept:
        if self.heads == "query_head":
            return Kept.per_query_head(top_k_mask(scores, quota.tokens), snapshot.heads)
        return Kept.uniform(top_k(scores, quota.tokens))
