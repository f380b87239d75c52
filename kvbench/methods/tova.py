"""TOVA: keeps the tokens that the last one attends to."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvbench.kernels.top_k import lowest
from kvbench.methods.base import Eviction, LayerSnapshot, StepView
from kvbench.methods.registry import register


@register("tova")
@dataclass(frozen=True, kw_only=True)
class TOVA(Eviction):
    """Keeps the tokens with the highest attention from the last token, averaged over all heads: one choice per layer.

    `mode=paper` is the official cache, which may evict the last token itself and chooses again after each decode step;
    `mode=kvpress` always keeps the last token and evicts at prefill only.
    """

    differs = "kvpress evicts at prefill only and always keeps the last token."
    source = "Oren et al. 2024, arXiv 2401.06104, section 3"
    budget_meaning = "tokens held per KV head, also while decoding (kvpress: kept of the prompt)"

    pins = True

    mode: Literal["paper", "kvpress"] = "paper"
    window = 1

    def scores(self, snapshot: LayerSnapshot) -> Tensor:
        scores = snapshot.window_scores(1).mean(0, keepdim=True)
        if self.mode == "kvpress":
            scores[:, -1] = torch.inf
        return scores

    @property
    def steps(self) -> bool:
        return self.mode == "paper"

    def step(self, view: StepView, drop: int) -> Tensor:
        probs_RC = view.probs_RHGNC[:, :, :, -1].mean((1, 2))
        return lowest(probs_RC, drop)[:, None].expand(-1, view.probs_RHGNC.shape[1], -1)
