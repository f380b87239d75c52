"""Random eviction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvbench.kernels.top_k import top_k
from kvbench.methods.base import Eviction, Kept, LayerSnapshot
from kvbench.methods.registry import register


@register("random")
@dataclass(frozen=True, kw_only=True)
class Random(Eviction):
    """Keeps uniformly random tokens, drawn anew per layer and KV head: the floor of every comparison."""

    source = "-"
    budget_meaning = "tokens kept per KV head"

    seed: int = 0

    def scores(self, snapshot: LayerSnapshot) -> torch.Tensor:
        # drawn on the CPU: the same tokens on every device
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + snapshot.layer)
        drawn = torch.rand(snapshot.heads, snapshot.length, generator=generator, dtype=torch.float64)
        return drawn.to(snapshot.k_HTD.device)

    def keep(
        self, snapshot: LayerSnapshot, scores: Any, tokens: int, earlier: Sequence[Kept], ratio: str | None = None
    ) -> Kept:
        return Kept.uniform(top_k(scores, tokens))
