"""Formats of 8-bit floating point with a scale."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.formats.tokenwise import Codec
from kvbench.methods.base import Format
from kvbench.methods.registry import register


@dataclass(frozen=True, kw_only=True)
class Scaled(Codec):
    """fp8 numbers that a fp32 scale multiplies, `[1, H, 1, 1]` or one for all; kept as bytes."""

    scale: Tensor
    stored: torch.dtype
    model: torch.dtype
    fixed: bool = True

    def encode(self, x: Tensor) -> Tensor:
        limit = torch.finfo(self.stored).max
        return (x.float() / self.scale).clamp(-limit, limit).to(self.stored).view(torch.uint8)

    def decode(self, stored: Tensor) -> Tensor:
        return (numbers(stored, self.stored) * self.scale).to(self.model)


def numbers(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 numbers of fp8 bytes (uint8, no infinity or NaN), by way of the fp16 bits that they are a part of.

    Far faster on a CPU than torch's own conversion, and equal to it.
    """
    bits = stored.to(torch.int16)
    if dtype == torch.float8_e5m2:
        return (bits << 8).view(torch.float16).float()
    # e4m3: the exponent moves into fp16's wider field, whose bias is larger by 8
    return ((bits & 0x80) << 8 | (bits & 0x7F) << 7).view(torch.float16).float() * 2**8


@dataclass(frozen=True, kw_only=True)
class _FP8(Format):
    dtype: ClassVar[torch.dtype]
    bytes_formula = "1 byte per element, 4 per scale (K and V each: one per layer, or one per KV head)"

    scales: Literal["tensor", "head"] = "tensor"

    def codec(self, x_BHKD: Tensor) -> Scaled:
        # rows that have a prefix each got copies of the same one
        highest = x_BHKD[:1].abs().float()
        highest = highest.amax() if self.scales == "tensor" else highest.amax((0, 2, 3), keepdim=True)
        scale = (highest / torch.finfo(self.dtype).max).clamp(min=torch.finfo(torch.float32).tiny)
        return Scaled(scale=scale, scale_bytes=4 * scale.numel(), stored=self.dtype, model=x_BHKD.dtype)


@register("fp8_e4m3")
@dataclass(frozen=True, kw_only=True)
class FP8E4M3(_FP8):
    """fp8 with 3 bits of mantissa; the scales are fixed at prefill so that the largest kept number just fits.

    `scales=tensor`: one for the keys of a layer and one for its values (where KV heads keep different numbers
    of tokens, each is a tensor of its own); `scales=head`: one per KV head. Appended tokens take the same
    scales and saturate. Read as the model's dtype, step by step.
    """

    source = "OCP 8-bit floating point specification 1.0; torch.float8_e4m3fn, largest number 448"
    dtype = torch.float8_e4m3fn


@register("fp8_e5m2")
@dataclass(frozen=True, kw_only=True)
class FP8E5M2(_FP8):
    """fp8 with 2 bits of mantissa; scales, appended tokens and reading as fp8_e4m3."""

    source = "OCP 8-bit floating point specification 1.0; torch.float8_e5m2, largest number 57344"
    dtype = torch.float8_e5m2
