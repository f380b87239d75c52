"""AdaKV: the heads of a layer share its budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.kernels.top_k import top_k_mask
from kvbench.methods.base import Kept, LayerSnapshot, Quota
from kvbench.methods.expected_attention import ExpectedAttention
from kvbench.methods.registry import register
from kvbench.methods.snapkv import SnapKV

# kvpress 0.5.5 wraps AdaKV around this one
EXPECTED = ExpectedAttention(epsilon=0.01)


@register("adakv")
@dataclass(frozen=True, kw_only=True)
class AdaKV(SnapKV):
    """Keeps the tokens of highest score across all heads of a layer, so that heads keep different numbers of tokens.

    `mode=paper`: with b = budget - window, head h keeps the window and round((1 - alpha) * n_h + floor(alpha * b))
    other tokens, n_h being its share of the layer's H * b best scores; rounding may cost a head up to 1.5 tokens or add
    half a one. `mode=kvpress`: every head keeps at least its int(alpha * budget) best tokens, the window first, and the
    rest of the H * budget tokens goes to the best scores of the layer. kvpress only masks what it evicts; here the
    cache shrinks.

    `scorer=snapkv` uses SnapKV's scores. `scorer=expected_attention` uses those of expected attention with epsilon
    0.01, which with `mode=kvpress` is kvpress's registry entry; its sinks take the place of the window above, and
    window, pool and kernel are not used.
    """

    differs = (
        "The code's default argument for alpha is 0.5; its LongBench script passes 0.2, which is the "
        "default here. The code stores K and V per query head; with `--gqa_support` it stores them per KV head and "
        "ranks by the mean (or maximum) over the group, and `heads=kv_head` is that form with the mean."
    )
    source = (
        "Feng et al. 2024, arXiv 2407.11550, Algorithm 1; official window 32, kernel 7, max pooling, heads "
        "query_head, and alpha 0.2 in its LongBench script (its default argument is 0.5)"
    )
    budget_meaning = "mean of the tokens kept over the KV heads of a layer, window (or sinks) included"
    bytes_formula = "2 * keep * D * element; keep is the mean over heads, otherwise as snapkv"
    ragged: ClassVar[bool] = True

    scorer: Literal["snapkv", "expected_attention"] = "snapkv"
    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha: {self.alpha} is not in [0, 1]")
        if self.scorer != "snapkv" and self.heads != "kv_head":
            raise UserError("heads: query_head needs scorer=snapkv; expected attention scores per KV head")

    def defaults_of_source(self) -> Mapping[str, Any]:
        # without SnapKV's scores they are not used, and must not make another cell
        return super().defaults_of_source() if self.scorer == "snapkv" else self.source_defaults["paper"]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.scorer == "snapkv" else EXPECTED.needs

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        """SnapKV's scores, or those of expected attention `[H, T - sinks]`."""
        if self.scorer == "snapkv":
            return super().scores(snapshot)
        return EXPECTED.scores(snapshot)[:, EXPECTED.sinks :]

    def keep(self, snapshot: LayerSnapshot, scores: Any, quota: Quota) -> Kept:
        if self.scorer == "snapkv":
            return super().keep(snapshot, scores, quota)
        sinks = torch.arange(min(EXPECTED.sinks, quota.tokens), device=scores.device)
        if quota.tokens <= EXPECTED.sinks:
            return Kept([sinks] * snapshot.heads)
        chosen = self.choose(scores, quota.tokens - len(sinks), len(sinks))
        return Kept([torch.cat([sinks, row.nonzero()[:, 0] + len(sinks)]) for row in chosen])

    def choose(self, scores: Tensor, tokens: int, window: int) -> Tensor:
        if self.mode == "kvpress":
            guaranteed = top_k_mask(scores, int((tokens + window) * self.alpha) - window)
            return _best_of_layer(scores.masked_fill(guaranteed, torch.inf), tokens)
        share = _best_of_layer(scores, tokens).sum(-1) * (1 - self.alpha) + int(tokens * self.alpha)
        counts = share.round().int().tolist()
        return torch.stack([top_k_mask(row, count) for row, count in zip(scores, counts, strict=True)])


def _best_of_layer(scores: Tensor, tokens: int) -> Tensor:
    """Marks the best scores of the whole layer, `tokens` per row on average."""
    return top_k_mask(scores.flatten(), tokens * scores.shape[0]).view(scores.shape)
