"""Formats by definition: the exact, slow reference."""

import torch
from torch import Tensor

#: bits of the mantissa, exponent bias and codes of finite numbers
LAYOUT = {"e4m3": (3, 7, 127), "e5m2": (2, 15, 124)}


def fp8_table(code: str) -> Tensor:
    """The numbers of the codes without a sign, ascending, fp64."""
    mantissa, bias, finite = LAYOUT[code]
    values = []
    for n in range(finite):
        exponent, fraction = n >> mantissa, (n & (2**mantissa - 1)) / 2**mantissa
        values.append((1 + fraction) * 2.0 ** (exponent - bias) if exponent else fraction * 2.0 ** (1 - bias))
    return torch.tensor(values, dtype=torch.float64)


def to_fp8(x_BHTD: Tensor, scale: Tensor, code: str) -> Tensor:
    """The nearest codes; see `kernels.quantise_kv.to_fp8`."""
    # the quotient is a fp32 number
    x, table = (x_BHTD.float() / scale).double(), fp8_table(code)
    distance = (x.abs().clamp(max=float(table[-1])).unsqueeze(-1) - table).abs()
    # ties to even
    odd = torch.arange(len(table)) % 2
    nearest = torch.where(distance == distance.amin(-1, keepdim=True), odd, 2).argmin(-1)
    return (nearest + 128 * x.signbit()).to(torch.uint8)


def from_fp8(codes_BHTD: Tensor, scale: Tensor, code: str, dtype: torch.dtype) -> Tensor:
    """The numbers of codes; see `kernels.quantise_kv.from_fp8`."""
    table = torch.cat([fp8_table(code), -fp8_table(code)])
    place = codes_BHTD.long() % 128 + len(table) // 2 * (codes_BHTD >= 128)
    return (table[place] * scale.double()).to(dtype)


def pack(x_BHTD: Tensor, bits: int, group: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Group by group in fp64; see `kernels.quantise_kv.pack`."""
    x, highest = x_BHTD.double(), 2**bits - 1
    batch, heads, length, dim = x.shape
    sizes = (length // group, dim) if axis == 2 else (length, dim // group)
    scale, zero = (torch.zeros(batch, heads, *sizes, dtype=torch.float16) for _ in range(2))
    numbers = torch.zeros(x.shape, dtype=torch.long)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in scale.shape)).tolist():
        b, h, t, d = at
        run = slice(at[axis] * group, (at[axis] + 1) * group)
        where = (b, h, run, d) if axis == 2 else (b, h, t, run)
        zero[b, h, t, d] = x[where].min()
        scale[b, h, t, d] = max(float(x[where].max() - zero[b, h, t, d].double()) / highest, 2**-24)
        steps = (x[where] - zero[b, h, t, d].double()) / scale[b, h, t, d].double()
        numbers[where] = steps.round().clamp(0, highest).long()
    codes = torch.zeros(batch, heads, length, dim * bits // 8, dtype=torch.long)
    for d in range(dim):
        codes[..., d * bits // 8] += numbers[..., d] * 2 ** (d * bits % 8)
    return codes.to(torch.uint8), scale, zero


def unpack(
    codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group: int, axis: int, dtype: torch.dtype
) -> Tensor:
    """Number by number in fp64; see `kernels.quantise_kv.unpack`."""
    dim = codes.shape[-1] * 8 // bits
    columns = [codes[..., d * bits // 8].long() // 2 ** (d * bits % 8) % 2**bits for d in range(dim)]
    scale, zero = (x.double().repeat_interleave(group, axis) for x in (scale, zero))
    return (torch.stack(columns, dim=-1) * scale + zero).to(dtype)
