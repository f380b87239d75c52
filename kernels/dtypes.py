"""Element types and layouts, as the compiled and the Triton forms know them."""

import torch
from torch import Tensor

#: the numbers that stand for them in the C++ forms
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def dot_precision(dtype: torch.dtype) -> str:
    """The `input_precision` of `tl.dot`: exact products of 16-bit numbers, three TF32 products for fp32.

    On NVIDIA plain fp32 multiplication would spill registers by the thousand; AMD multiplies matrices of fp32.
    """
    return "tf32x3" if dtype == torch.float32 and torch.version.hip is None else "ieee"


def rows_of(x: Tensor) -> Tensor:
    """The tensor `[..., T, D]`, copied where its rows do not follow each other in memory."""
    return x if x.stride()[-2:] == (x.shape[-1], 1) else x.contiguous()
