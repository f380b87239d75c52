"""Entropy-gated ChunkKV: chunks whose score comes from a few tokens keep only those."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.kernels.top_k import top_k_mask
from kvbench.methods.base import Eviction, Kept, LayerSnapshot, Quota
from kvbench.methods.chunkkv import press_scores
from kvbench.methods.registry import register


@register("egchunkkv")
@dataclass(frozen=True, kw_only=True)
class EntropyGatedChunkKV(Eviction):
    """Keeps the best chunks, and of chunks with a high score but low entropy only the `spiky` best tokens.

    A score is high from the median of the chunks' mean scores on, an entropy low below the median of the entropies of
    their scores. Chunks are taken by rank until the budget is spent, the last one cut to its best tokens; what is left
    of the budget goes to the best of the other tokens. One choice per layer; the budget is met exactly.
    """

    differs = "kvpress's own; there is no paper. kvpress chooses from the first row of a batch alone."
    source = (
        "kvpress 0.5.5, EntropyGatedChunkKVPress around its SnapKV; chunk 10, spiky 4, window 64, kernel 5"
    )
    budget_meaning = "tokens kept per KV head"

    positive = ("window", "chunk", "kernel")

    scorer: Literal["snapkv", "knorm", "keydiff"] = "snapkv"
    window: int = 64
    chunk: int = 10
    spiky: int = 4
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.spiky < self.chunk:
            raise UserError(f"spiky: {self.spiky} is not in [1, chunk)")

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        """Scores of the tokens, summed over heads: `[T]`."""
        return press_scores(self.scorer, snapshot, self.window, self.kernel).sum(0)

    def keep(self, snapshot: LayerSnapshot, scores: Any, quota: Quota) -> Kept:
        chunks = -(-len(scores) // self.chunk)
        rows_CX = torch.nn.functional.pad(scores, (0, chunks * self.chunk - len(scores)), value=-torch.inf)
        rows_CX = rows_CX.view(chunks, self.chunk)
        inside_CX = torch.arange(chunks * self.chunk, device=scores.device).view(chunks, -1) < len(scores)
        sizes_C = inside_CX.sum(1)
        means_C = rows_CX.masked_fill(~inside_CX, 0).sum(1) / sizes_C
        entropies_C = _entropy(rows_CX, inside_CX)
        gated = (means_C >= means_C.median()) & (entropies_C < entropies_C.median())
        wanted_C = torch.where(gated, sizes_C.clamp(max=self.spiky), sizes_C)
        order = means_C.sort(descending=True, stable=True).indices
        before_C = (wanted_C[order].cumsum(0) - wanted_C[order])[order.argsort()]
        granted_C = (quota.tokens - before_C).clamp(min=0).minimum(wanted_C)
        rank_CX = rows_CX.sort(dim=1, descending=True, stable=True).indices.argsort(1)
        chosen = (rank_CX < granted_C[:, None]).flatten()[: len(scores)]
        # at most `tokens` are marked so far: keep these, then the best of the others
        chosen = top_k_mask(scores.masked_fill(chosen, torch.inf), quota.tokens)
        return Kept([chosen.nonzero()[:, 0]] * snapshot.heads)


def _entropy(rows_CX: Tensor, inside: Tensor) -> Tensor:
    """Entropy of each chunk's scores, normalised to sum to 1, relative to the maximum possible."""
    sizes_C = inside.sum(1)
    lowest = rows_CX.masked_fill(~inside, torch.inf).amin(1, keepdim=True).clamp(max=0)
    shares = (rows_CX - lowest).masked_fill(~inside, 0)
    shares = shares / (shares.sum(1, keepdim=True) + 1e-8)
    entropy = -(shares * (shares + 1e-8).log()).sum(1)
    return (entropy / sizes_C.clamp(min=2).log()).clamp(0, 1).masked_fill(sizes_C == 1, 0)
