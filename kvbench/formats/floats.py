"""16-bit floating-point formats."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.methods.base import Format
from kvbench.methods.registry import register
from kvbench.methods.storage import Codec


@dataclass(frozen=True, kw_only=True)
class Cast(Codec):
    """Conversion to another dtype; finite values beyond its range, or the model's, saturate."""

    stored: torch.dtype
    model: torch.dtype
    fixed: bool = True

    def encode(self, x: Tensor) -> Tensor:
        return saturated(x, self.stored)

    def decode(self, stored: Tensor) -> Tensor:
        return saturated(stored, self.model)


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Conversion in which finite numbers beyond the range become the largest one; infinities and NaN stay."""
    limit = torch.finfo(dtype).max
    if torch.finfo(x.dtype).max <= limit:
        return x.to(dtype)
    # in fp32, because bf16 has no number near fp16's largest
    wide = x.float()
    return torch.where(wide.isinf(), wide, wide.clamp(-limit, limit)).to(dtype)


class _CastFormat(Format):
    dtype: ClassVar[torch.dtype]
    source = "-"
    bytes_formula = "2 bytes per element"

    def codec(self, x_BHKD: Tensor) -> Cast:
        return Cast(stored=self.dtype, model=x_BHKD.dtype)


@register("bf16")
@dataclass(frozen=True, kw_only=True)
class BF16(_CastFormat):
    """Stores all tokens as bfloat16, appended ones included; they are read in the model's dtype.

    Under a float16 model, numbers that bfloat16 rounds beyond 65504 are read as 65504.
    """

    dtype = torch.bfloat16


@register("fp16")
@dataclass(frozen=True, kw_only=True)
class FP16(_CastFormat):
    """Stores all tokens as float16, appended ones included; they are read in the model's dtype.

    Finite numbers beyond 65504, which bfloat16 and float32 models can have, saturate. Infinities and NaN stay.
    """

    dtype = torch.float16
