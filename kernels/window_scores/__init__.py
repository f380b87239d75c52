"""Observation-window attention, the score behind SnapKV, ChunkKV, PyramidKV and RocketKV's first stage."""

import torch
from torch import Tensor

from kvbench.kernels import forms
from kvbench.kernels.window_scores import cpu

#: raised when the numbers of any form change
VERSION = 1


def form(device: torch.device, dtype: torch.dtype) -> str:
    """The form that runs; see `forms.choose`."""
    return forms.choose(device, dtype, cpu.available)


def window_scores(q_QWD: Tensor, k_HTD: Tensor, scaling: float) -> Tensor:
    """Softmax attention of the last W queries to every key, causal inside the window, summed over the queries.

    Args:
        q_QWD: post-RoPE queries of the last W positions `[Q, W, D]`, Q a multiple of H.
        k_HTD: post-RoPE keys `[H, T, D]`, T >= W.
        scaling: factor on the logits.

    Returns:
        `[Q, T]` fp32; each row sums to W. Source: SnapKV, Li et al. 2024, section 3.
    """
    module = forms.dispatch(__name__, form, k_HTD.device, k_HTD.dtype)
    return module.window_scores(q_QWD, k_HTD, scaling).float()
