"""Attention of several new tokens to stored tokens and to each other, by torch's own kernels."""

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
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

    On a GPU with a mask, keys and values are repeated for the query heads of a group: no fused kernel of torch takes a
    mask together with `enable_gqa`, and the unfused one writes all logits to memory.

    Args:
        q_BQND: queries.
        k_BHCD: keys, H KV heads.
        v_BHCD: values.
        scaling: factor on the logits.
        mask: what each query sees, bool, broadcast to `[B, Q, N, C]`; None for the causal mask, where N is C.

    Returns:
        `[B, Q, N, D]`.
    """
    forms.note(__name__, forms.portable)
    if q_BQND.device.type != "cuda":
        return scaled_dot_product_attention(
            q_BQND, k_BHCD, v_BHCD, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
    if mask is None:
        with sdpa_kernel(BACKENDS):
            return scaled_dot_product_attention(
                q_BQND, k_BHCD, v_BHCD, is_causal=True, scale=scaling, enable_gqa=True
            )
    return repeated(q_BQND, k_BHCD, v_BHCD, scaling, mask)


def repeated(q_BQND: Tensor, k_BHCD: Tensor, v_BHCD: Tensor, scaling: float, mask: Tensor) -> Tensor:
    """`masked_attention` with keys and values repeated for every query head."""
    group = q_BQND.shape[1] // k_BHCD.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k_BHCD, v_BHCD))
    mask = mask.view(*[1] * (4 - mask.dim()), *mask.shape)  # fused kernels take two or four dimensions
    with sdpa_kernel(BACKENDS):
        return scaled_dot_product_attention(q_BQND, k, v, attn_mask=mask, scale=scaling)
