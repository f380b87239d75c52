"""KeyDiff: keeps keys unlike the others."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from kvbench.methods.base import Eviction, LayerSnapshot
from kvbench.methods.registry import register


@register("keydiff")
@dataclass(frozen=True, kw_only=True)
class KeyDiff(Eviction):
    """Keeps the tokens whose keys point away from the mean direction of their head's keys."""

    differs = (
        "The paper evicts block by block during prefill; here, as in kvpress, eviction runs once, after "
        "prefill."
    )
    source = "Park et al. 2025, arXiv 2504.15364, section 3"
    budget_meaning = "tokens kept per KV head"

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        k_HTD = snapshot.k_HTD.float()
        mean_H1D = normalize(k_HTD, dim=-1).mean(1, keepdim=True)
        return -cosine_similarity(k_HTD, mean_H1D, dim=-1)
