"""Accumulated attention per key over all queries of a prompt, the score behind H2O and observed attention."""

import torch
from torch import Tensor

from kvbench.kernels.window_scores import window_scores


def attention_sum(q_QTD: Tensor, k_HTD: Tensor, scaling: float, block: int = 128) -> Tensor:
    """Causal softmax attention that each key gets, summed over all queries, some of them at a time.

    Args:
        q_QTD: post-RoPE queries `[Q, N, D]` of all positions, or of the last N, Q a multiple of H.
        k_HTD: post-RoPE keys `[H, T, D]`.
        scaling: factor on the logits.
        block: queries per step; the scratch is `[G * block, T]` fp32.

    Returns:
        `[Q, T]` fp32. On a GPU, `window_scores.triton_form.window_scores` with a window of T is the same sum.
        Source: H2O, Zhang et al. 2023, section 3.
    """
    queries, count, _ = q_QTD.shape
    length = k_HTD.shape[1]
    out_QT = torch.zeros(queries, length, device=k_HTD.device)
    for low in range(0, count, block):
        part = q_QTD[:, low : low + block]
        end = length - count + low + part.shape[1]
        out_QT[:, :end] += window_scores(part, k_HTD[:, :end], scaling)
    return out_QT
