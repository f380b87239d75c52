"""The Triton form: one launch reads the scores once, and neighbours are combined in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

#: scores that a program holds
BLOCK = 1024


@triton.jit
def shifted(x, by, BLOCK: tl.constexpr):
    """`x` shifted left by `by` places; the last `by` places are undefined."""
    return tl.gather(x, tl.minimum(tl.arange(0, BLOCK) + by, BLOCK - 1), 0)


@triton.jit
def pool_rows(
    Scores, Out, length, step,
    GROUP: tl.constexpr, KERNEL: tl.constexpr, BITS: tl.constexpr, AVERAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Neighbourhoods of doubling width, joined according to the binary digits of the kernel width."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * (BLOCK - KERNEL + 1)
    i = tl.arange(0, BLOCK)
    near = first - KERNEL // 2 + i
    inside = (near >= 0) & (near < length)
    run = tl.zeros([BLOCK], tl.float32)
    for g in range(0, GROUP):
        run += tl.load(Scores + (row * GROUP + g) * step + near, mask=inside, other=0.0).to(tl.float32)
    whole = tl.zeros([BLOCK], tl.float32)
    if not AVERAGE:
        run = tl.where(inside, run, float("-inf"))
        whole = tl.full([BLOCK], float("-inf"), tl.float32)
    for bit in tl.static_range(BITS):
        if (KERNEL >> bit) & 1:
            part = shifted(run, KERNEL & ((1 << bit) - 1), BLOCK)
            whole = whole + part if AVERAGE else tl.maximum(whole, part)
        twice = shifted(run, 1 << bit, BLOCK)
        run = run + twice if AVERAGE else tl.maximum(run, twice)
    if AVERAGE:
        whole = whole / KERNEL
    t = first + i
    tl.store(Out + row * length + t, whole, mask=(i < BLOCK - KERNEL + 1) & (t < length))


@triton.jit
def chunk_rows(
    Scores, Out, length, chunks, step, before,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Sums of `CHUNKS` runs; `before` is what the first one lacks."""
    row = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * CHUNKS + tl.arange(0, CHUNKS)
    place = tl.arange(0, WIDTH)
    t = (c * CHUNK - before)[:, None] + place[None, :]
    x = tl.load(
        Scores + row * step + t, mask=(place < CHUNK)[None, :] & (t >= 0) & (t < length), other=0.0
    ).to(tl.float32)
    tl.store(Out + row * chunks + c, tl.sum(x, 1), mask=c < chunks)


def pool(scores: Tensor, kernel: int, kind: str, group: int) -> Tensor:
    """Sums of groups of rows, pooled; see `kernels.pool.pool`. One launch."""
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    rows, length = scores.shape[0] // group, scores.shape[1]
    out = scores.new_empty(rows, length, dtype=torch.float32)
    block = max(BLOCK, triton.next_power_of_2(4 * kernel))
    pool_rows[(triton.cdiv(length, block - kernel + 1), rows)](
        scores, out, length, scores.stride(0), GROUP=group, KERNEL=kernel, BITS=kernel.bit_length(),
        AVERAGE=kind == "avg", BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def chunk_sums(scores_HT: Tensor, chunk: int, offset: int) -> Tensor:
    """Sums over runs; see `kernels.pool.chunk_sums`. One launch."""
    scores_HT = scores_HT if scores_HT.stride(1) == 1 else scores_HT.contiguous()
    (heads, length), before = scores_HT.shape, -offset % chunk
    chunks = triton.cdiv(length + before, chunk)
    out = scores_HT.new_empty(heads, chunks, dtype=torch.float32)
    width = triton.next_power_of_2(chunk)
    at_once = max(1, 2 * BLOCK // width)
    chunk_rows[(triton.cdiv(chunks, at_once), heads)](
        scores_HT, out, length, chunks, scores_HT.stride(0), before,
        CHUNK=chunk, WIDTH=width, CHUNKS=at_once, num_warps=4,
    )  # fmt: skip
    return out
