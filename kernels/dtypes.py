"""How Triton kernels multiply matrices."""

import torch


def dot_precision(dtype: torch.dtype) -> str:
    """The `input_precision` of `tl.dot`: exact products of 16-bit numbers, three TF32 products for fp32.

    Plain fp32 multiplication would spill registers by the thousand.
    """
    return "tf32x3" if dtype == torch.float32 else "ieee"
