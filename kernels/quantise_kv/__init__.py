"""Keys and values in fewer bits: scaled fp8 codes, and integers packed in groups."""

import torch
from torch import Tensor

from kvbench.kernels import forms

#: raised when the numbers of any form change
VERSION = 1
#: torch's dtypes of the fp8 codes
FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def form(device: torch.device, dtype: torch.dtype) -> str:
    """The form that runs; see `forms.choose`."""
    return forms.choose(device, dtype)


def to_fp8(x_BHTD: Tensor, scale: Tensor, code: str) -> Tensor:
    """The nearest codes of `x / scale` (in fp32), ties to even; large numbers saturate.

    Args:
        x_BHTD: finite numbers `[B, H, T, D]`.
        scale: fp32, one number or one per KV head `[1, H, 1, 1]`.
        code: e4m3 or e5m2.

    Returns:
        uint8 `[B, H, T, D]`. Source: OCP 8-bit floating point specification 1.0.
    """
    module = forms.dispatch(__name__, form, x_BHTD.device, x_BHTD.dtype)
    return module.to_fp8(x_BHTD, scale, code)


def from_fp8(codes_BHTD: Tensor, scale: Tensor, code: str, dtype: torch.dtype) -> Tensor:
    """The numbers of codes times the scale: `[B, H, T, D]` in `dtype`.

    Args:
        codes_BHTD: uint8 from `to_fp8`.
        scale: fp32, one number or one per KV head `[1, H, 1, 1]`.
        code: e4m3 or e5m2.
        dtype: of the result.
    """
    module = forms.dispatch(__name__, form, codes_BHTD.device, dtype)
    return module.from_fp8(codes_BHTD, scale, code, dtype)


def pack(x_BHTD: Tensor, bits: int, group: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantises in groups along an axis; a number is `code * scale + zero`.

    The zero point is the group's minimum and the scale its range over `2 ** bits - 1`, both rounded to fp16.
    Source: KIVI, Liu et al. 2024, section 3.

    Args:
        x_BHTD: numbers `[B, H, T, D]`.
        bits: 2, 4 or 8.
        group: numbers per group, g; divides the axis.
        axis: 2 for groups of tokens of one channel, 3 for groups of channels of one token.

    Returns:
        Codes uint8 `[B, H, T, D * bits / 8]`, the first number of a byte in its low bits; scale and zero point fp16
        `[B, H, T / g, D]` or `[B, H, T, D / g]`.
    """
    module = forms.dispatch(__name__, form, x_BHTD.device, x_BHTD.dtype)
    return module.pack(x_BHTD, bits, group, axis)


def unpack(
    codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group: int, axis: int, dtype: torch.dtype
) -> Tensor:
    """The numbers of what `pack` returned: `[B, H, T, D]` in `dtype`; computed in fp32."""
    module = forms.dispatch(__name__, form, codes.device, dtype)
    return module.unpack(codes, scale, zero, bits, group, axis, dtype)
