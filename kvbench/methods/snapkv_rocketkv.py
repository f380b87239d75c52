"""SnapKV as RocketKV's paper runs it as a baseline."""

from dataclasses import dataclass
from typing import Any, Literal

from kvbench.methods.base import Kept, LayerSnapshot, Quota
from kvbench.methods.registry import register
from kvbench.methods.snapkv import SnapKV


@register("snapkv_rocketkv")
@dataclass(frozen=True, kw_only=True)
class SnapKVRocketKV(SnapKV):
    """SnapKV per query head, with the budget of a KV head divided among the query heads of its group.

    Each of the G query heads keeps budget // G tokens, its window included: where they keep different ones, a decode
    step reads as many keys as the budget says. With one query head per KV head it is SnapKV.
    """

    differs = (
        "RocketKV's code has no baselines. Its appendix says that the cache is not shared within a group; here the "
        "union per KV head is stored once, and each query head reads its own tokens of it."
    )
    source = (
        "Behnam et al. 2025, arXiv 2502.14051v3, appendix A.3: window 32 (128 on SCBench), kernel 7, the budget "
        "divided by the number of query heads per group"
    )
    budget_meaning = "tokens kept by all query heads of a group together, windows included"

    heads: Literal["kv_head", "query_head"] = "query_head"

    def keep(self, snapshot: LayerSnapshot, scores: Any, quota: Quota) -> Kept:
        group = len(scores) // snapshot.heads
        return super().keep(snapshot, scores, Quota(self.own_tokens(quota.tokens, group)))

    def own_tokens(self, tokens: int, group: int) -> int:
        return max(1, tokens // group) if self.heads == "query_head" else tokens
