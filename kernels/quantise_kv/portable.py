"""The torch form."""

import torch
from torch import Tensor

from kvbench.kernels.quantise_kv import FP8


def to_fp8(x_BHTD: Tensor, scale: Tensor, code: str) -> Tensor:
    """The nearest codes; see `kernels.quantise_kv.to_fp8`."""
    limit = torch.finfo(FP8[code]).max
    return (x_BHTD.float() / scale).clamp(-limit, limit).to(FP8[code]).view(torch.uint8)


def from_fp8(codes_BHTD: Tensor, scale: Tensor, code: str, dtype: torch.dtype) -> Tensor:
    """The numbers of codes; see `kernels.quantise_kv.from_fp8`."""
    return (_numbers(codes_BHTD, code) * scale).to(dtype)


def _numbers(codes: Tensor, code: str) -> Tensor:
    """fp32 numbers of fp8 bytes (no infinity or NaN), through the fp16 bits that contain them.

    Far faster on a CPU than torch's own conversion, and equal to it.
    """
    bits = codes.to(torch.int16)
    if code == "e5m2":
        return (bits << 8).view(torch.float16).float()
    # e4m3: the exponent moves into fp16's wider field, whose bias is larger by 8
    return ((bits & 0x80) << 8 | (bits & 0x7F) << 7).view(torch.float16).float() * 2**8


def pack(x_BHTD: Tensor, bits: int, group: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantises in groups; see `kernels.quantise_kv.pack`."""
    groups = x_BHTD.float().unflatten(axis, (x_BHTD.shape[axis] // group, group))
    low, high = groups.amin(axis + 1), groups.amax(axis + 1)
    highest = 2**bits - 1
    zero = low.half()
    scale = ((high - zero.float()) / highest).clamp(min=2**-24).half()
    codes = (groups - zero.float().unsqueeze(axis + 1)) / scale.float().unsqueeze(axis + 1)
    codes = codes.round().clamp(0, highest).to(torch.uint8).flatten(axis, axis + 1)
    per_byte = 8 // bits
    parts = codes.unflatten(-1, (-1, per_byte))
    packed = parts[..., 0].clone()
    for n in range(1, per_byte):
        packed |= parts[..., n] << (n * bits)
    return packed, scale, zero


def unpack(
    codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group: int, axis: int, dtype: torch.dtype
) -> Tensor:
    """The numbers of packed groups; see `kernels.quantise_kv.unpack`."""
    if bits < 8:
        parts = [(codes >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        codes = torch.stack(parts, dim=-1).flatten(-2)
    groups = codes.unflatten(axis, (scale.shape[axis], group)).float()
    scale, zero = (x.float().unsqueeze(axis + 1) for x in (scale, zero))
    return groups.mul_(scale).add_(zero).flatten(axis, axis + 1).to(dtype)
