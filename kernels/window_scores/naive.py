"""Attention that the last queries of a prompt pay to every key: the exact, slow reference."""

import torch
from torch import Tensor


def window_scores(q_QWD: Tensor, k_HTD: Tensor, scaling: float) -> Tensor:
    """Softmax attention of the observation window, summed over its queries, in fp64.

    The window is the last W positions, causal inside it (SnapKV, Li et al. 2024, section 3).

    Args:
        q_QWD: post-RoPE queries of the last W positions `[Q, W, D]`, Q a multiple of H.
        k_HTD: post-RoPE keys `[H, T, D]`, T >= W.
        scaling: factor on the logits.

    Returns:
        `[Q, T]` fp64; each row sums to W.
    """
    group = q_QWD.shape[0] // k_HTD.shape[0]
    window, length = q_QWD.shape[1], k_HTD.shape[1]
    k_QTD = k_HTD.double().repeat_interleave(group, dim=0)
    logits_QWT = q_QWD.double() @ k_QTD.transpose(1, 2) * scaling
    query_at = torch.arange(length - window, length)[:, None]
    logits_QWT = logits_QWT.masked_fill(torch.arange(length) > query_at, -torch.inf)
    return logits_QWT.softmax(dim=-1).sum(dim=1)
