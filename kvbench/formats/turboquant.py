"""TurboQuant in the form that vLLM ships."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from kvbench.formats.bits import as_bytes, check_rotates, from_bytes, pack_bits, unpack_bits, walsh_hadamard
from kvbench.formats.floats import saturated
from kvbench.formats.token_head import TokenCodec
from kvbench.methods.base import Format, Native
from kvbench.methods.registry import register
from kvbench.methods.storage import Codec

#: by preset: bits of a key (8: fp8 codes without a scale) and of a value
PRESETS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"k8v4": (8, 4), "4bit_nc": (4, 4), "k3v4_nc": (3, 4), "3bit_nc": (3, 3)}
)
#: vLLM 0.30's centroids of a standard normal distribution, the positive half, by bits
VLLM_TABLE: Mapping[int, tuple[float, ...]] = MappingProxyType(
    {
        3: (0.24498, 0.75565, 1.34318, 2.15035),
        4: (0.12843, 0.38814, 0.65688, 0.94245, 1.25626, 1.61788, 2.06845, 2.73092),
    }
)
#: largest number of a value: its scale and minimum fit in fp16
LARGEST = 65408.0


@functools.cache
def lloyd_max(bits: int) -> tuple[float, ...]:
    """Centroids of 2^bits levels with the least squared error for a standard normal distribution, in order.

    Lloyd 1982, Max 1960: each centroid is the mean of the distribution between the midpoints around it.
    """
    levels = 2**bits
    points = [(2 * level + 1 - levels) * 2 / levels for level in range(levels)]
    while True:
        edges = [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(points)), math.inf]
        density = [math.exp(-edge * edge / 2) / math.sqrt(2 * math.pi) for edge in edges]
        below = [(1 + math.erf(edge / math.sqrt(2))) / 2 for edge in edges]
        moved = [(density[n] - density[n + 1]) / (below[n + 1] - below[n]) for n in range(levels)]
        if max(abs(a - b) for a, b in zip(points, moved, strict=True)) < 1e-12:
            return tuple(moved)
        points = moved


@dataclass(frozen=True, kw_only=True)
class PlainFP8(TokenCodec):
    """fp8_e4m3 codes without a scale: numbers beyond 448 saturate."""

    def encode(self, x: Tensor) -> Tensor:
        # a NaN passes the clamp, an infinity would not
        return as_bytes((x.float().clamp(-448, 448) + (x - x).float()).to(torch.float8_e4m3fn))

    def decode(self, stored: Tensor) -> Tensor:
        return from_bytes(stored, torch.float8_e4m3fn).to(self.model)


@dataclass(frozen=True, kw_only=True)
class RotatedCodes(TokenCodec):
    """Codes of the rotated unit vector, by the nearest centroid, then its norm in fp16.

    Attributes:
        bits: per channel.
        centroids: of the rotated unit vector's channels, in order.
    """

    bits: int
    centroids: Tensor

    def encode(self, x: Tensor) -> Tensor:
        x = x.float()
        # divided first: squares of large numbers are infinite
        largest = x.abs().amax(-1, keepdim=True)
        norm = (x / largest.clamp(min=1e-30)).norm(dim=-1, keepdim=True) * largest
        unit = x / (norm + 1e-8)
        middles = (self.centroids[1:] + self.centroids[:-1]) / 2
        codes = torch.bucketize(self._rotated(unit.nan_to_num(0)), middles, right=True)
        packed = pack_bits(codes.to(torch.uint8), self.bits)
        poison = (x - x).sum(-1, keepdim=True)
        return torch.cat([packed, as_bytes(saturated(norm, torch.float16) + poison.half())], dim=-1)

    def decode(self, stored: Tensor) -> Tensor:
        size = self.dim * self.bits // 8
        y = self.centroids[unpack_bits(stored[..., :size], self.bits, self.dim).long()]
        y = y / (y.square().sum(-1, keepdim=True) + 1e-16).sqrt()
        norm = from_bytes(stored[..., size:], torch.float16).float()
        return saturated(self._rotated(y * norm), self.model)

    def _rotated(self, x: Tensor) -> Tensor:
        """Times an orthogonal matrix that is its own inverse."""
        return walsh_hadamard(x) / math.sqrt(self.dim)


@dataclass(frozen=True, kw_only=True)
class UniformCodes(TokenCodec):
    """Codes between the token's smallest and largest number, then scale and smallest number in fp16."""

    bits: int

    def encode(self, x: Tensor) -> Tensor:
        poison = (x - x).float().sum(-1, keepdim=True)
        x = x.float().clamp(-LARGEST, LARGEST)
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        scale = ((high - low) / (2**self.bits - 1)).clamp(min=1e-8)
        codes = ((x - low) / scale + 0.5).nan_to_num(0).clamp(0, 2**self.bits - 1).to(torch.uint8)
        numbers = torch.cat([scale, low], dim=-1) + poison
        return torch.cat([pack_bits(codes, self.bits), as_bytes(numbers.half())], dim=-1)

    def decode(self, stored: Tensor) -> Tensor:
        size = self.dim * self.bits // 8
        scale, low = from_bytes(stored[..., size:], torch.float16).float().split(1, dim=-1)
        return saturated(
            unpack_bits(stored[..., :size], self.bits, self.dim).float() * scale + low, self.model
        )


@register("turboquant")
@dataclass(frozen=True, kw_only=True)
class TurboQuant(Format):
    """Stores keys as codes of the rotated unit vector and its norm, values as codes between their smallest and largest
    number, for each token and KV head.

    A key k becomes u = k / |k|, rotated by H / sqrt(D) with a Hadamard matrix H of entries +-1; each channel becomes
    the nearest centroid of Lloyd and Max for N(0, 1 / D). It is read as the centroids, divided by their norm (`nc`),
    times |k| in fp16, turned back. A value has scale = (max - min) / (2^b - 1), at least 1e-8, and codes
    floor((v - min) / scale + 1/2); scale and min are fp16, so that numbers beyond 65408 saturate. `preset` gives the
    bits of keys and values as vLLM names them; `k8v4` stores keys as fp8_e4m3 without a scale, which saturate at 448.
    The first and last `plain_layers` layers stay in the model's dtype. D is a power of 2.
    """

    source = "TurboQuant, Zandieh et al. 2025, arXiv 2504.19874, in the form of vLLM 0.30 (`turboquant_*`)"
    differs = (
        "The rotation has no random signs and there is no second, 1-bit stage, as in vLLM. `table=exact` solves for the"
        " centroids; vLLM's (`table=vllm`) differ by less than 2e-3."
    )
    bytes_formula = "D * (bits_k + bits_v) / 8 + 6; k8v4 without 2 of these; the plain layers 2 * D * element"

    preset: Literal["k8v4", "4bit_nc", "k3v4_nc", "3bit_nc"] = "4bit_nc"
    table: Literal["exact", "vllm"] = "exact"
    plain_layers: int = 2

    def in_layer(self, layer: int, num_layers: int) -> Format:
        plain = layer < self.plain_layers or layer >= num_layers - self.plain_layers
        return Native() if plain else self

    def codecs(self, k_BHKD: Tensor, v_BHKD: Tensor) -> tuple[Codec, Codec]:
        keys, values = PRESETS[self.preset]
        dim, model = k_BHKD.shape[-1], k_BHKD.dtype
        value_codec = UniformCodes(model=model, dim=v_BHKD.shape[-1], bits=values)
        if keys == 8:
            return PlainFP8(model=model, dim=dim), value_codec
        half = VLLM_TABLE[keys] if self.table == "vllm" else lloyd_max(keys)[2 ** (keys - 1) :]
        centroids = torch.tensor([*(-c for c in reversed(half)), *half]) / math.sqrt(dim)
        check_rotates(dim, self.name)
        key_codec = RotatedCodes(model=model, dim=dim, bits=keys, centroids=centroids.to(k_BHKD.device))
        return key_codec, value_codec
