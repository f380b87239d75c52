"""Rotary position embedding: rotates keys and queries to other positions."""

import torch
from torch import Tensor

from kvbench.kernels import forms

#: raised when the numbers of any form change
VERSION = 1


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates by the given angles. Rotations add up: a post-RoPE key moves by a difference of positions.

    The halves of the rotary channels form the pairs, as in Llama, Mistral and Qwen; other channels are unchanged.

    Args:
        x: `[..., D]`.
        cos: cosines `[..., R]` of R <= D rotary channels, broadcast over x.
        sin: sines, likewise.

    Returns:
        `[..., D]` in the dtype of x; computed in fp32. Source: RoFormer, Su et al. 2021, section 3.4.
    """
    forms.note(__name__, forms.portable)
    rotary = cos.shape[-1]
    rotated = x[..., :rotary].float()
    first, second = rotated.chunk(2, dim=-1)
    out = rotated * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([out.to(x.dtype), x[..., rotary:]], dim=-1)
