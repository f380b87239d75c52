"""Random eviction."""

from dataclasses import dataclass

import torch

from kvbench.config.errors import UserError
from kvbench.methods.base import Eviction, LayerSnapshot
from kvbench.methods.registry import register


@register("random")
@dataclass(frozen=True, kw_only=True)
class Random(Eviction):
    """Keeps uniformly random tokens, drawn per layer and KV head: the floor of every comparison."""

    source = "-"
    budget_meaning = "tokens kept per KV head"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed >= 2**32:
            raise UserError(f"seed: {self.seed} is not allowed, give a number below 2^32")

    def scores(self, snapshot: LayerSnapshot) -> torch.Tensor:
        # drawn on the CPU: the same tokens on every device
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + snapshot.layer)
        drawn = torch.rand(snapshot.heads, snapshot.length, generator=generator, dtype=torch.float64)
        return drawn.to(snapshot.k_HTD.device)
