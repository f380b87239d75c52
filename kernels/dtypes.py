"""Element types and layouts of the compiled and the Triton forms."""

import torch
from torch import Tensor

#: codes of the element types in the C++ forms
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def dot_precision(dtype: torch.dtype) -> str:
    """The `input_precision` of `tl.dot`: exact products of 16-bit numbers, three TF32 products for fp32.

    On NVIDIA plain fp32 multiplication would spill registers by the thousand; AMD multiplies matrices of fp32.
    """
    return "tf32x3" if dtype == torch.float32 and torch.version.hip is None else "ieee"


def rows_of(x: Tensor) -> Tensor:
    """The tensor `[..., T, D]`, copied if its rows are not contiguous."""
    return x if x.stride()[-2:] == (x.shape[-1], 1) else x.contiguous()
