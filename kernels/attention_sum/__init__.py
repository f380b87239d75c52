"""Accumulated attention per key over all queries of a prompt, the score behind H2O and observed attention."""

import torch
from torch import Tensor

from kvbench.kernels import forms

#: raised when the numbers of any form change
VERSION = 1


def form(device: torch.device, dtype: torch.dtype) -> str:
    """The form that runs; see `forms.choose`.

    There is no compiled form: it would compute the logits twice, and for so many queries a matrix library is faster.
    """
    return forms.choose(device, dtype)


def attention_sum(q_QTD: Tensor, k_HTD: Tensor, scaling: float) -> Tensor:
    """Causal softmax attention to each key, summed over all queries, without a T x T tensor.

    Args:
        q_QTD: post-RoPE queries `[Q, N, D]` of all positions, or of the last N, Q a multiple of H.
        k_HTD: post-RoPE keys `[H, T, D]`.
        scaling: factor on the logits.

    Returns:
        `[Q, T]` fp32. Source: H2O, Zhang et al. 2023, section 3.
    """
    module = forms.dispatch(__name__, form, k_HTD.device, k_HTD.dtype)
    return module.attention_sum(q_QTD, k_HTD, scaling).float()
