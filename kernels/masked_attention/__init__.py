"""Attention of several new tokens to stored tokens and to each other, by torch's own kernels."""

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from kvbench.kernels import forms

#: raised when the numbers of any form change
VERSION = 1
#: without cuDNN, which makes a plan for every new key length
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def masked_attention(
    q_BQND: Tensor, k_BHCD: Tensor, v_BHCD: Tensor, scaling: float, mask: Tensor | None = None
) -> Tensor:
    """Attention of the N newest of C tokens, causal among them.

    On a GPU flash attention takes a causal mask as such, with the query heads of a group together. With another mask,
    or where it does not take the dtype, keys and values are repeated for the query heads of a group: no other fused
    kernel of torch takes grouped heads, and the unfused one writes all logits to memory.

    Args:
        q_BQND: queries.
        k_BHCD: keys, H KV heads.
        v_BHCD: values.
        scaling: factor on the logits.
        mask: what each query sees, bool, broadcast to `[B, Q, N, C]`; None for the causal mask, the last query at the
            last key.

    Returns:
        `[B, Q, N, D]`.
    """
    forms.note(__name__, forms.portable)
    square = q_BQND.shape[2] == k_BHCD.shape[2]
    if q_BQND.device.type != "cuda":
        if mask is None and not square:
            mask = _causal(q_BQND, k_BHCD)
        return scaled_dot_product_attention(
            q_BQND, k_BHCD, v_BHCD, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
    if mask is not None:
        return repeated(q_BQND, k_BHCD, v_BHCD, scaling, mask)
    if square:
        with sdpa_kernel(BACKENDS):
            return scaled_dot_product_attention(
                q_BQND, k_BHCD, v_BHCD, is_causal=True, scale=scaling, enable_gqa=True
            )
    return newest(q_BQND, k_BHCD, v_BHCD, scaling)


def newest(q_BQND: Tensor, k_BHCD: Tensor, v_BHCD: Tensor, scaling: float) -> Tensor:
    """`masked_attention` of fewer queries than keys, causal, by flash attention where it takes them."""
    with sdpa_kernel(BACKENDS):
        if can_use_flash_attention(SDPAParams(q_BQND, k_BHCD, v_BHCD, None, 0.0, False, True)):
            bias = causal_lower_right(q_BQND.shape[2], k_BHCD.shape[2])
            return scaled_dot_product_attention(
                q_BQND, k_BHCD, v_BHCD, attn_mask=bias, scale=scaling, enable_gqa=True
            )
    return repeated(q_BQND, k_BHCD, v_BHCD, scaling, _causal(q_BQND, k_BHCD))


def _causal(q_BQND: Tensor, k_BHCD: Tensor) -> Tensor:
    """What the newest of some tokens see of all of them `[N, C]`."""
    count, length = q_BQND.shape[2], k_BHCD.shape[2]
    return torch.ones(count, length, dtype=torch.bool, device=q_BQND.device).tril(length - count)


def repeated(q_BQND: Tensor, k_BHCD: Tensor, v_BHCD: Tensor, scaling: float, mask: Tensor) -> Tensor:
    """`masked_attention` with keys and values repeated for every query head."""
    group = q_BQND.shape[1] // k_BHCD.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k_BHCD, v_BHCD))
    mask = mask.view(*[1] * (4 - mask.dim()), *mask.shape)  # fused kernels take two or four dimensions
    with sdpa_kernel(BACKENDS):
        return scaled_dot_product_attention(q_BQND, k, v, attn_mask=mask, scale=scaling)
