"""Accumulated attention with the whole matrix in memory: the exact, slow reference."""

import torch
from torch import Tensor


def attention_sum(q_QTD: Tensor, k_HTD: Tensor, scaling: float) -> Tensor:
    """Causal softmax attention to each key, summed over all queries, in fp64: `[Q, T]`."""
    queries, count, _ = q_QTD.shape
    group, length = queries // k_HTD.shape[0], k_HTD.shape[1]
    logits_QNT = q_QTD.double() @ k_HTD.double().repeat_interleave(group, dim=0).transpose(1, 2) * scaling
    future = torch.ones(count, length, dtype=torch.bool).triu(length - count + 1)
    return logits_QNT.masked_fill(future, -torch.inf).softmax(-1).sum(1)
