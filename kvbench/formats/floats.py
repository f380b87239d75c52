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
    """Conversion to another dtype; values beyond its range saturate."""

    stored: torch.dtype
    model: torch.dtype
    fixed: bool = True

    def encode(self, x: Tensor) -> Tensor:
        info = torch.finfo(self.stored)
        return x.clamp(info.min, info.max).to(self.stored)

    def decode(self, stored: Tensor) -> Tensor:
        return stored.to(self.model)


class _CastFormat(Format):
    dtype: ClassVar[torch.dtype]
    source = "-"
    bytes_formula = "2 bytes per element"

    def codec(self, x_BHKD: Tensor) -> Cast:
        return Cast(stored=self.dtype, model=x_BHKD.dtype)


@register("bf16")
@dataclass(frozen=True, kw_only=True)
class BF16(_CastFormat):
    """Stores all tokens as bfloat16, appended ones included; they are read in the model's dtype."""

    dtype = torch.bfloat16


@register("fp16")
@dataclass(frozen=True, kw_only=True)
class FP16(_CastFormat):
    """Stores all tokens as float16, appended ones included, saturating at 65504; they are read in the model's dtype."""

    dtype = torch.float16
