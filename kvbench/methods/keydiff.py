"""KeyDiff: keys unlike the others are kept."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from kvbench.methods.base import Eviction, LayerSnapshot
from kvbench.methods.registry import register


@register("keydiff")
@dataclass(frozen=True, kw_only=True)
class KeyDiff(Eviction):
    """Keeps the tokens whose keys point away from the mean direction of all keys of the head."""

    differs = "The paper evicts block by block during prefill; here and in kvpress once, after it."
    source = "Park et al. 2025, arXiv 2504.15364, section 3"
    budget_meaning = "tokens kept per KV head"

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        k_HTD = snapshot.k_HTD.float()
        mean_H1D = normalize(k_HTD, dim=-1).mean(1, keepdim=True)
        return -cosine_similarity(k_HTD, mean_H1D, dim=-1)
