"""The Triton form: codes are computed from the bits, so that no fp8 instructions are needed and rounding is torch's."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvbench.kernels.dtypes import rows_of
from kvbench.kernels.quantise_kv import FP8
from kvbench.kernels.sparse_decode.triton_form import CODES, fp8_number

#: numbers per program
BLOCK = 1024
#: bits of the mantissa, exponent bias
LAYOUT = {"e4m3": (3, 7), "e5m2": (2, 15)}


@triton.jit
def fp8_encode(
    X, Scale, Out, count, heads, x_row, x_head, scale_step, LIMIT: tl.constexpr, MANTISSA: tl.constexpr,
    BIAS: tl.constexpr, SMALLEST: tl.constexpr, MAGIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Codes of one block of a row's and KV head's numbers."""
    job = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    scale = tl.load(Scale + job % heads * scale_step)
    x = tl.load(X + job // heads * x_row + job % heads * x_head + at, mask=at < count, other=0.0)
    x = tl.div_rn(x.to(tl.float32), scale)
    size = tl.minimum(tl.abs(x), LIMIT)
    bits = size.to(tl.int32, bitcast=True)
    # the mantissa rounded to nearest even, a carry goes to the exponent; then another bias
    shift: tl.constexpr = 23 - MANTISSA
    normal = (bits + ((1 << (shift - 1)) - 1) + ((bits >> shift) & 1)) >> shift
    normal -= (127 - BIAS) << MANTISSA
    # added to MAGIC, the last bit of an fp32 number is the smallest subnormal code
    subnormal = (size + MAGIC).to(tl.int32, bitcast=True) - tl.full([BLOCK], MAGIC, tl.float32).to(
        tl.int32, bitcast=True
    )
    code = tl.where(size < SMALLEST, subnormal, normal) | ((x.to(tl.int32, bitcast=True) >> 24) & 0x80)
    tl.store(Out + job * count + at, code.to(tl.uint8), mask=at < count)


@triton.jit
def fp8_decode(
    Codes, Scale, Out, count, heads, row, head, scale_step, CODE: tl.constexpr, BLOCK: tl.constexpr
):
    """Numbers of one block of a row's and KV head's codes."""
    job = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    scale = tl.load(Scale + job % heads * scale_step)
    codes = tl.load(Codes + job // heads * row + job % heads * head + at, mask=at < count, other=0)
    x = fp8_number(codes, CODE).to(tl.float32) * scale
    tl.store(Out + job * count + at, x.to(Out.dtype.element_ty), mask=at < count)


@triton.jit
def group_ranges(
    X, Scale, Zero, groups, heads, x_row, x_head, highest, D: tl.constexpr, GROUP: tl.constexpr,
    GP: tl.constexpr, AXIS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scale and zero point of some groups of one row and KV head."""
    job = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, GP)
    first, step = i * GROUP, 1
    if AXIS == 2:
        first, step = i // D * (GROUP * D) + i % D, D
    at = first[:, None] + n[None, :] * step
    inside = (i < groups)[:, None] & (n < GROUP)[None, :]
    x = tl.load(X + job // heads * x_row + job % heads * x_head + at, mask=inside, other=0.0).to(tl.float32)
    zero = tl.min(tl.where(inside, x, float("inf")), 1).to(tl.float16)
    high = tl.max(tl.where(inside, x, float("-inf")), 1)
    scale = tl.maximum(tl.div_rn(high - zero.to(tl.float32), highest), 5.9604644775390625e-08).to(tl.float16)
    tl.store(Zero + job * groups + i, zero, mask=i < groups)
    tl.store(Scale + job * groups + i, scale, mask=i < groups)


@triton.jit
def _group(at, D: tl.constexpr, GROUP: tl.constexpr, AXIS: tl.constexpr):
    """The group that a number belongs to, both counted within a row and KV head."""
    group = at // GROUP
    if AXIS == 2:
        group = at // (D * GROUP) * D + at % D
    return group


@triton.jit
def pack_codes(
    X, Scale, Zero, Out, bytes_, groups, heads, x_row, x_head, D: tl.constexpr, GROUP: tl.constexpr,
    AXIS: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some bytes of codes of one row and KV head."""
    PER: tl.constexpr = 8 // BITS
    HIGHEST: tl.constexpr = 2**BITS - 1
    job = tl.program_id(0).to(tl.int64)
    byte, n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PER)
    at = byte[:, None] * PER + n[None, :]
    inside = (byte < bytes_)[:, None] & (n < PER)[None, :]
    group = _group(at, D, GROUP, AXIS)
    x = tl.load(X + job // heads * x_row + job % heads * x_head + at, mask=inside, other=0.0).to(tl.float32)
    zero = tl.load(Zero + job * groups + group, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(Scale + job * groups + group, mask=inside, other=1.0).to(tl.float32)
    steps = tl.minimum(tl.maximum(tl.div_rn(x - zero, scale), 0.0), HIGHEST)
    # added to 3 * 2 ** 22, the last bit of an fp32 number is one: rounds to nearest, ties to even
    code = ((steps + 12582912.0) - 12582912.0).to(tl.int32)
    packed = tl.sum(code << (n * BITS)[None, :], 1)
    tl.store(Out + job * bytes_ + byte, packed.to(tl.uint8), mask=byte < bytes_)


@triton.jit
def unpack_numbers(
    Codes, Scale, Zero, Out, bytes_, groups, D: tl.constexpr, GROUP: tl.constexpr, AXIS: tl.constexpr,
    BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The numbers of some bytes of one row and KV head."""
    PER: tl.constexpr = 8 // BITS
    job = tl.program_id(0).to(tl.int64)
    byte, n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PER)
    at = byte[:, None] * PER + n[None, :]
    inside = (byte < bytes_)[:, None] & (n < PER)[None, :]
    group = _group(at, D, GROUP, AXIS)
    codes = tl.load(Codes + job * bytes_ + byte, mask=byte < bytes_, other=0).to(tl.int32)
    number = ((codes[:, None] >> (n * BITS)[None, :]) & (2**BITS - 1)).to(tl.float32)
    zero = tl.load(Zero + job * groups + group, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(Scale + job * groups + group, mask=inside, other=1.0).to(tl.float32)
    x = (number * scale + zero).to(Out.dtype.element_ty)
    tl.store(Out + job * bytes_ * PER + at, x, mask=inside)


def to_fp8(x_BHTD: Tensor, scale: Tensor, code: str) -> Tensor:
    """The nearest codes; see `kernels.quantise_kv.to_fp8`. One launch."""
    x, out = rows_of(x_BHTD), torch.empty(x_BHTD.shape, dtype=torch.uint8, device=x_BHTD.device)
    mantissa, bias = LAYOUT[code]
    if grid := _grid(x, x.shape[2] * x.shape[3], BLOCK):
        fp8_encode[grid](
            x, scale, out, x.shape[2] * x.shape[3], x.shape[1], x.stride(0), x.stride(1), int(scale.numel() > 1),
            LIMIT=torch.finfo(FP8[code]).max, MANTISSA=mantissa, BIAS=bias, SMALLEST=2.0 ** (1 - bias),
            MAGIC=2.0 ** (24 - bias - mantissa), BLOCK=BLOCK,
        )  # fmt: skip
    return out


def from_fp8(codes_BHTD: Tensor, scale: Tensor, code: str, dtype: torch.dtype) -> Tensor:
    """The numbers of codes; see `kernels.quantise_kv.from_fp8`. One launch."""
    x, out = rows_of(codes_BHTD), torch.empty(codes_BHTD.shape, dtype=dtype, device=codes_BHTD.device)
    if grid := _grid(x, x.shape[2] * x.shape[3], BLOCK):
        fp8_decode[grid](
            x, scale, out, x.shape[2] * x.shape[3], x.shape[1], x.stride(0), x.stride(1), int(scale.numel() > 1),
            CODE=CODES[code], BLOCK=BLOCK,
        )  # fmt: skip
    return out


def pack(x_BHTD: Tensor, bits: int, group: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantises in groups; see `kernels.quantise_kv.pack`. Two launches, each of which reads the numbers once."""
    x = rows_of(x_BHTD)
    batch, heads, length, dim = x.shape
    sizes = (length // group, dim) if axis == 2 else (length, dim // group)
    scale, zero = (x.new_empty(batch, heads, *sizes, dtype=torch.float16) for _ in range(2))
    out = x.new_empty(batch, heads, length, dim * bits // 8, dtype=torch.uint8)
    groups, count, padded = sizes[0] * sizes[1], length * dim * bits // 8, triton.next_power_of_2(group)
    where = {"D": dim, "GROUP": group, "AXIS": axis}
    block = max(1, 4 * BLOCK // padded)
    if grid := _grid(x, groups, block):
        group_ranges[grid](
            x,
            scale,
            zero,
            groups,
            heads,
            x.stride(0),
            x.stride(1),
            2.0**bits - 1,
            **where,
            GP=padded,
            BLOCK=block,
        )
        pack_codes[_grid(x, count, BLOCK * bits // 8)](
            x,
            scale,
            zero,
            out,
            count,
            groups,
            heads,
            x.stride(0),
            x.stride(1),
            **where,
            BITS=bits,
            BLOCK=BLOCK * bits // 8,
        )
    return out, scale, zero


def unpack(
    codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group: int, axis: int, dtype: torch.dtype
) -> Tensor:
    """The numbers of packed groups; see `kernels.quantise_kv.unpack`. One launch."""
    codes, scale, zero = (x.contiguous() for x in (codes, scale, zero))
    batch, heads, length, width = codes.shape
    dim = width * 8 // bits
    out = torch.empty(batch, heads, length, dim, dtype=dtype, device=codes.device)
    if grid := _grid(codes, length * width, BLOCK * bits // 8):
        unpack_numbers[grid](
            codes, scale, zero, out, length * width, scale.shape[2] * scale.shape[3],
            D=dim, GROUP=group, AXIS=axis, BITS=bits, BLOCK=BLOCK * bits // 8,
        )  # fmt: skip
    return out


def _grid(x_BHXX: Tensor, count: int, block: int) -> tuple[int, int] | None:
    """Grid for `count` items per row and KV head; empty if there are none."""
    return (x_BHXX.shape[0] * x_BHXX.shape[1], triton.cdiv(count, block)) if x_BHXX.numel() else None
