"""StreamingLLM: attention sinks and a recent window."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvbench.methods.base import Eviction, Kept, LayerSnapshot
from kvbench.methods.registry import register


@register("streaming_llm")
@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Eviction):
    """Keeps the first `sinks` tokens and the most recent ones, at their original positions."""

    source = "Xiao et al. 2024, arXiv 2309.17453, section 3.2; sinks 4 is the official default"
    budget_meaning = "tokens kept per KV head, sinks included"

    sinks: int = 4

    def keep(
        self, snapshot: LayerSnapshot, scores: Any, tokens: int, earlier: Sequence[Kept], ratio: str | None = None
    ) -> Kept:
        sinks = min(self.sinks, tokens)
        positions = torch.arange(tokens, device=snapshot.k_HTD.device)
        positions[sinks:] += snapshot.length - tokens
        return Kept([positions] * snapshot.heads)
