"""Decode attention over a compact or selected KV cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.kernels import forms
from kvbench.kernels.quantise_kv import from_fp8
from kvbench.kernels.sparse_decode import cpu

#: raised when the numbers of any form change
VERSION = 1


@dataclass(frozen=True)
class FP8:
    """Format of keys and values that are stored as fp8 codes.

    Attributes:
        code: e4m3 or e5m2.
        k_scale: fp32 factor on the keys, one number or one per KV head `[1, H, 1, 1]`.
        v_scale: factor on the values, likewise.
    """

    code: str
    k_scale: Tensor
    v_scale: Tensor


def form(device: torch.device, dtype: torch.dtype, group: int, head_dim: int) -> str:
    """The form that runs; see `forms.choose`."""
    return forms.choose(device, dtype, lambda: cpu.available(group, head_dim))


def sparse_decode(
    q_RHGD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, k_tail_RHMD: Tensor, v_tail_RHMD: Tensor, tail: Tensor,
    scaling: float, index_RHN: Tensor | None = None, mask_HGK: Tensor | None = None, fp8: FP8 | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Decode attention of R rows with the same layout.

    Args:
        q_RHGD: queries `[R, H, G, D]` (H KV heads, G query heads each), in the dtype of the keys.
        k_BHKD: prefix keys `[B, H, K, D]`; B is R, or 1 when the rows share the prefix.
        v_BHKD: prefix values, likewise.
        k_tail_RHMD: keys of the appended tokens `[R, H, M, D]`, with room for M.
        v_tail_RHMD: values, likewise.
        tail: number of appended tokens, an integer tensor of one element.
        scaling: factor on the logits.
        index_RHN: int32 slots to read `[R, H, N]` (prefix first, then tail; negative: none), or per query head
            `[R, H, G, N]`; every slot when None.
        mask_HGK: True where a query head may read a prefix slot `[H, G, K]`.
        fp8: format, if keys and values are fp8 codes, uint8; Triton reads the codes, other forms decode them first.

    Returns:
        Output `[R, H, G, D]` in the dtype of q, and the natural-log sum of exponentials `[R, H, G]` fp32. A head
        without slots gets zeros and -inf.
    """
    where = q_RHGD.device, q_RHGD.dtype, q_RHGD.shape[2], q_RHGD.shape[3]
    stored = k_BHKD, v_BHKD, k_tail_RHMD, v_tail_RHMD
    decode = forms.dispatch(__name__, form, *where).sparse_decode
    if fp8 is None:
        return decode(q_RHGD, *stored, tail, scaling, index_RHN, mask_HGK)
    if form(*where) == "triton":
        return decode(q_RHGD, *stored, tail, scaling, index_RHN, mask_HGK, fp8=fp8)
    scales = (fp8.k_scale, fp8.v_scale) * 2
    numbers = (from_fp8(x, scale, fp8.code, q_RHGD.dtype) for x, scale in zip(stored, scales, strict=True))
    return decode(q_RHGD, *numbers, tail, scaling, index_RHN, mask_HGK)
