"""Rotations, roundings and bytes of the formats that treat each token of a KV head by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.config.errors import UserError


def as_bytes(x: Tensor) -> Tensor:
    """The bytes of `[..., N]`, uint8 `[..., N * element size]`."""
    return x.contiguous().view(torch.uint8)


def from_bytes(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """What `as_bytes` was given."""
    return stored.contiguous().view(dtype)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Integers below 2^bits packed without gaps, uint8 `[..., N * bits / 8]`; the first one in the lowest bits.

    Args:
        codes: uint8 `[..., N]`, N * bits a multiple of 8.
        bits: per integer.
    """
    single = codes[..., None] >> torch.arange(bits, device=codes.device, dtype=torch.uint8) & 1
    by_byte = single.flatten(-2).unflatten(-1, (-1, 8))
    weights = 1 << torch.arange(8, device=codes.device, dtype=torch.uint8)
    return (by_byte * weights).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` integers that `pack_bits` was given, uint8 `[..., count]`."""
    single = packed[..., None] >> torch.arange(8, device=packed.device, dtype=torch.uint8) & 1
    by_code = single.flatten(-2).unflatten(-1, (count, bits))
    weights = 1 << torch.arange(bits, device=packed.device, dtype=torch.uint8)
    return (by_code * weights).sum(-1, dtype=torch.uint8)


def limited(x: Tensor) -> Tensor:
    """x in fp32; finite numbers beyond 1e35 saturate, so that scales and sums of a thousand of them stay finite."""
    wide = x.float()
    return torch.where(wide.isfinite(), wide.clamp(-1e35, 1e35), wide)


def round_half_away(x: Tensor) -> Tensor:
    """The nearest integer; halves go away from zero."""
    return torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x))


def check_rotates(dim: int, name: str) -> None:
    """Refuse heads that `walsh_hadamard` cannot rotate.

    Args:
        dim: channels of a head, D.
        name: the format, for the message.

    Raises:
        UserError: D is no power of 2.
    """
    if dim & (dim - 1):
        raise UserError(f"format: {name} needs a head dimension that is a power of 2, the model has {dim}")


def walsh_hadamard(x: Tensor) -> Tensor:
    """`[..., D]` times Sylvester's Hadamard matrix of entries +-1, D a power of 2.

    Sums and differences of channels: unlike those of a matrix product, a token's last digits do not depend on how many
    tokens are rotated together.
    """
    width = 1
    while width < x.shape[-1]:
        first, second = x.unflatten(-1, (-1, 2, width)).unbind(-2)
        x = torch.stack([first + second, first - second], dim=-2).flatten(-3)
        width *= 2
    return x
