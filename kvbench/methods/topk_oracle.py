"""Exact top-k: the upper bound of selection."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kvbench.kernels.sparse_decode.portable import prefix_product
from kvbench.kernels.top_k import top_k
from kvbench.methods.base import Selection
from kvbench.methods.registry import register


@register("topk_oracle")
@dataclass(frozen=True, kw_only=True)
class TopKOracle(Selection):
    """Reads the tokens with the highest attention at each step, as if choosing them were free.

    `heads=kv_head` ranks by the group's summed probabilities, one set per KV head; `heads=query_head` ranks per query
    head (RocketKV's Exact-TopK), which may touch up to G times as many tokens.
    """

    differs = (
        "RocketKV's paper gives its oracle a budget per group; its code ranks per query head, which may "
        "touch G times as many tokens."
    )
    source = "exact; RocketKV's Exact-TopK baseline is heads=query_head"
    budget_meaning = "tokens attended per step (per query head for heads=query_head)"
    bytes_formula = "2 * T * D * element"

    heads: Literal["kv_head", "query_head"] = "kv_head"

    def select(
        self, q_RHGD: Tensor, k_BHKD: Tensor, k_tail_RHMD: Tensor, length: Tensor, state: Any, tokens: int,
        scaling: float,
    ) -> Tensor:  # fmt: skip
        # in fp32: products in bf16 tie
        q = q_RHGD.float()
        tail = q @ k_tail_RHMD.float().transpose(-1, -2)
        logits = torch.cat([prefix_product(q, k_BHKD.float().transpose(-1, -2)), tail], dim=-1) * scaling
        slot = torch.arange(logits.shape[-1], device=logits.device)
        logits = logits.masked_fill(slot >= length, -torch.inf)
        scores = logits.softmax(-1).sum(2) if self.heads == "kv_head" else logits
        chosen = top_k(scores, tokens)
        return torch.where(chosen < length, chosen, -1).int()
