"""Key norm: keeps keys of small norm."""

from dataclasses import dataclass

from torch import Tensor

from kvbench.methods.base import Eviction, LayerSnapshot, Quota, Shape
from kvbench.methods.registry import register


@register("knorm")
@dataclass(frozen=True, kw_only=True)
class KNorm(Eviction):
    """Keeps the tokens whose keys have the smallest L2 norm, whatever the queries are.

    The official README leaves the first two layers dense (`dense_layers=2`); its code, like kvpress, none by default.
    The official code rounds a ratio up and evicts nothing from prompts below 2048 tokens; here every budget applies.
    """

    source = "Devoto et al. 2024, arXiv 2406.11430, section 3"
    budget_meaning = "tokens kept per KV head"

    dense_layers: int = 0

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        return -snapshot.k_HTD.float().norm(dim=-1)

    def layer_tokens(self, quota: Quota, shape: Shape) -> list[int]:
        everything = shape.compressed + shape.max_new_tokens
        return [
            everything if layer < self.dense_layers else quota.tokens for layer in range(shape.num_layers)
        ]
