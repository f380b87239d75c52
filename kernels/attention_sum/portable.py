"""The torch form."""

import torch
from torch import Tensor

from kvbench.kernels.window_scores import portable


def attention_sum(q_QTD: Tensor, k_HTD: Tensor, scaling: float, block: int = 128) -> Tensor:
    """Causal softmax attention per key; see `kernels.attention_sum.attention_sum`.

    `block` queries per step: the scratch is `[G * block, T]` fp32.
    """
    queries, count, _ = q_QTD.shape
    length = k_HTD.shape[1]
    out_QT = torch.zeros(queries, length, device=k_HTD.device)
    for low in range(0, count, block):
        part = q_QTD[:, low : low + block]
        end = length - count + low + part.shape[1]
        out_QT[:, :end] += portable.window_scores(part, k_HTD[:, :end], scaling)
    return out_QT
