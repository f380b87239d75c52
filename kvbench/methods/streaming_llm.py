"""StreamingLLM: attention sinks and a recent window."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kvbench.methods.base import Eviction, Kept, LayerSnapshot, Quota, StepView
from kvbench.methods.registry import register


@register("streaming_llm")
@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Eviction):
    """Keeps the first `sinks` tokens and the most recent ones.

    `positions=reindexed`, the default, is the cache of the paper and the official code: positions count inside the
    cache, without a gap after the sinks, and the window rolls on while decoding. `positions=original` is kvpress's
    reading, which its maintainers say is not the paper's: one eviction after prefill, and keys stay at their positions
    in the text. The kept prompt tokens are the same. Paper and code stream a text through the cache; here, as for every
    method, prefill is dense and the cache is cut after it.
    """

    source = "Xiao et al. 2024, arXiv 2309.17453, section 3.2; sinks 4 is the official default"
    budget_meaning = (
        "tokens held per KV head, sinks included, also while decoding (original: kept of the prompt)"
    )

    version = 2
    sinks: int = 4
    positions: Literal["reindexed", "original"] = "reindexed"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rope"}) if self.reindexes else frozenset()

    @property
    def reindexes(self) -> bool:
        return self.positions == "reindexed"

    @property
    def leading(self) -> int:
        return self.sinks

    @property
    def steps(self) -> bool:
        return self.reindexes

    def keep(self, snapshot: LayerSnapshot, scores: Any, quota: Quota) -> Kept:
        sinks = min(self.sinks, quota.tokens)
        positions = torch.arange(quota.tokens, device=snapshot.k_HTD.device)
        positions[sinks:] += snapshot.length - quota.tokens
        return Kept([positions] * snapshot.heads)

    def step(self, view: StepView, drop: int) -> Tensor:
        rows, heads, slots = view.k_RHCD.shape[:3]
        first = min(self.leading, slots - drop)
        return torch.arange(first, first + drop, device=view.k_RHCD.device).expand(rows, heads, -1)
