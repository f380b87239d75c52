"""Formats with a scale for each token and KV head: codes and scale lie side by side, so that tokens can be dropped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.formats.bits import (
    as_bytes,
    check_rotates,
    from_bytes,
    limited,
    pack_bits,
    round_half_away,
    unpack_bits,
    walsh_hadamard,
)  # fmt: skip
from kvbench.formats.floats import saturated
from kvbench.methods.base import Format
from kvbench.methods.registry import register
from kvbench.methods.storage import Codec

#: smallest scale, as in vLLM
SMALLEST = 1e-6
#: seed of vLLM's random signs
SEED = 0x9E3779B9


@dataclass(frozen=True, kw_only=True)
class TokenCodec(Codec):
    """Stores a token of a KV head as one row of bytes."""

    model: torch.dtype
    dim: int
    fixed: bool = True


@dataclass(frozen=True, kw_only=True)
class FP8Codec(TokenCodec):
    """D bytes of fp8_e4m3 codes, then the fp32 scale."""

    def encode(self, x: Tensor) -> Tensor:
        x = limited(x)
        scale = (x.abs().amax(-1, keepdim=True) / 448).clamp(min=SMALLEST)
        codes = (x * (1 / scale)).clamp(-448, 448).to(torch.float8_e4m3fn)
        return torch.cat([as_bytes(codes), as_bytes(scale)], dim=-1)

    def decode(self, stored: Tensor) -> Tensor:
        codes = from_bytes(stored[..., : self.dim], torch.float8_e4m3fn)
        return saturated(codes.float() * from_bytes(stored[..., self.dim :], torch.float32), self.model)


@dataclass(frozen=True, kw_only=True)
class Int8Codec(TokenCodec):
    """D bytes of integers, then the fp32 scale."""

    def encode(self, x: Tensor) -> Tensor:
        x = limited(x)
        scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=SMALLEST)
        # the scale alone shows a number that is not finite
        codes = round_half_away(x * (1 / scale)).nan_to_num(0).clamp(-128, 127).to(torch.int8)
        return torch.cat([as_bytes(codes), as_bytes(scale)], dim=-1)

    def decode(self, stored: Tensor) -> Tensor:
        codes = from_bytes(stored[..., : self.dim], torch.int8)
        scale = from_bytes(stored[..., self.dim :], torch.float32)
        # an infinite scale is a number that is not finite: 0 times it is NaN, and so is what is read
        return saturated(codes.float() * (scale + (scale - scale)), self.model)


@dataclass(frozen=True, kw_only=True)
class Int4Codec(TokenCodec):
    """D / 2 bytes of 4-bit codes of the rotated token, then the fp32 scale with the zero point in its lowest 4 bits.

    The rotation is a Hadamard matrix after random signs.
    """

    signs_D: Tensor

    def encode(self, x: Tensor) -> Tensor:
        y = saturated(walsh_hadamard(limited(x) * self.signs_D), self.model).float()
        low, high = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
        scale = ((high - low) / 15).clamp(min=SMALLEST)
        zero = round_half_away(-low / scale).nan_to_num(0).clamp(0, 15)
        codes = round_half_away(y * (1 / scale) + zero).nan_to_num(0).clamp(0, 15)
        marked = (scale.view(torch.int32) & ~15) | zero.int()
        return torch.cat([pack_bits(codes.to(torch.uint8), 4), as_bytes(marked)], dim=-1)

    def decode(self, stored: Tensor) -> Tensor:
        codes = unpack_bits(stored[..., : self.dim // 2], 4, self.dim)
        marked = from_bytes(stored[..., self.dim // 2 :], torch.int32)
        y = (codes.float() - (marked & 15).float()) * (marked & ~15).view(torch.float32)
        return saturated(walsh_hadamard(y) * self.signs_D / self.dim, self.model)


class _TokenFormat(Format):
    source = "vLLM 0.30, `kv_cache_dtype`"


@register("fp8_token")
@dataclass(frozen=True, kw_only=True)
class FP8Token(_TokenFormat):
    """Stores K and V as fp8_e4m3 with a fp32 scale for each token and KV head: vLLM's `fp8_per_token_head`.

    The scale is the largest absolute number / 448, at least 1e-6. A token with a number that is not finite is read as
    NaN.
    """

    bytes_formula = "D + 4 bytes per key, and per value"

    def codec(self, x_BHKD: Tensor) -> FP8Codec:
        return FP8Codec(model=x_BHKD.dtype, dim=x_BHKD.shape[-1])


@register("int8_token")
@dataclass(frozen=True, kw_only=True)
class Int8Token(_TokenFormat):
    """Stores K and V as 8-bit integers with a fp32 scale for each token and KV head: vLLM's `int8_per_token_head`.

    The scale is the largest absolute number / 127, at least 1e-6; codes are rounded half away from zero. A token with a
    number that is not finite is read as NaN.
    """

    bytes_formula = "D + 4 bytes per key, and per value"

    def codec(self, x_BHKD: Tensor) -> Int8Codec:
        return Int8Codec(model=x_BHKD.dtype, dim=x_BHKD.shape[-1])


@register("int4_token")
@dataclass(frozen=True, kw_only=True)
class Int4Token(_TokenFormat):
    """Stores K and V as 4-bit integers after a randomised Hadamard rotation, with a scale and zero point for each token
    and KV head: vLLM's `int4_per_token_head`.

    With y = H (d * x), signs d of a fixed seed and a Hadamard matrix H of entries +-1: scale = (max y - min y) / 15, at
    least 1e-6; zero point = round(-min y / scale); code = round(y / scale + zero point), each within 0 and 15, half
    away from zero. y is rounded to the model's dtype before. The zero point takes the lowest 4 bits of the fp32 scale.
    D is a power of 2.
    """

    bytes_formula = "D / 2 + 4 bytes per key, and per value"
    differs = (
        "Attention reads the numbers turned back; vLLM turns queries and outputs instead, which is the same."
    )

    def codec(self, x_BHKD: Tensor) -> Int4Codec:
        dim = x_BHKD.shape[-1]
        check_rotates(dim, self.name)
        signs = torch.bernoulli(torch.full((dim,), 0.5), generator=torch.Generator().manual_seed(SEED))
        return Int4Codec(model=x_BHKD.dtype, dim=dim, signs_D=(2 * signs - 1).to(x_BHKD.device))
