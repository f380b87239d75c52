"""The Triton form: two passes over the keys, no `[Q, W, T]` tensor.

A window of all queries gives accumulated attention.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvbench.kernels.dtypes import dot_precision, rows_of

#: query rows and keys of a tile, by the size of an element; products of fp32 take many registers
ROWS, KEYS = {2: 64, 4: 16}, 64


@triton.jit
def window_lse(
    Q, K, Lse, length, window, rows, k_head, scaling,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """Natural log-sum-exp of the logits of some queries over one piece of the keys."""
    block, head, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    row = block * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DP)
    # rows are the group's queries, head by head: row % window is the position in the window
    position = length - window + row % window
    q = tl.load(
        Q + (head * rows + row)[:, None] * D + d[None, :],
        mask=(row < rows)[:, None] & (d < D)[None, :],
        other=0.0,
    )
    piece = tl.cdiv(tl.cdiv(length, SPLITS), KEYS) * KEYS
    low = split * piece
    high = tl.minimum(low + piece, tl.max(tl.where(row < rows, position, 0), 0) + 1)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    for start in range(low, high, KEYS):
        t = start + tl.arange(0, KEYS)
        k = tl.load(
            K + head * k_head + t.to(tl.int64)[None, :] * D + d[:, None],
            mask=(t < length)[None, :] & (d < D)[:, None], other=0.0,
        )  # fmt: skip
        logits = tl.dot(q, k, input_precision=PRECISION) * (scaling * 1.4426950408889634)
        logits = tl.where(t[None, :] <= position[:, None], logits, float("-inf"))
        top = tl.maximum(peak, tl.max(logits, 1))
        base = tl.where(top == float("-inf"), 0.0, top)
        mass = mass * tl.exp2(peak - base) + tl.sum(tl.exp2(logits - base[:, None]), 1)
        peak = top
    lse = tl.where(
        mass > 0, (peak + tl.log2(tl.where(mass > 0, mass, 1.0))) * 0.6931471805599453, float("-inf")
    )
    tl.store(Lse + (split * tl.num_programs(1) + head) * rows + row, lse, mask=row < rows)


@triton.jit
def window_sums(
    Q, K, Lse, Out, length, window, group, k_head, scaling,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention that one block of keys gets from each query head of the group, summed over the window."""
    head = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    d = tl.arange(0, DP)
    k = tl.load(
        K + head * k_head + t.to(tl.int64)[None, :] * D + d[:, None],
        mask=(t < length)[None, :] & (d < D)[:, None], other=0.0,
    )  # fmt: skip
    # queries before the block's first key see none of it
    first = tl.maximum(tl.program_id(0) * KEYS - (length - window), 0) // ROWS * ROWS
    for g in range(0, group):
        total = tl.zeros([KEYS], tl.float32)
        for start in range(first, window, ROWS):
            w = start + tl.arange(0, ROWS)
            row = (head * group + g) * window + w
            q = tl.load(
                Q + row[:, None] * D + d[None, :], mask=(w < window)[:, None] & (d < D)[None, :], other=0.0
            )
            lse = tl.load(Lse + row, mask=w < window, other=0.0)
            logits = tl.dot(q, k, input_precision=PRECISION) * scaling - lse[:, None]
            seen = (t[None, :] <= (length - window + w)[:, None]) & (w < window)[:, None]
            total += tl.sum(tl.where(seen, tl.exp2(logits * 1.4426950408889634), 0.0), 0)
        tl.store(Out + (head * group + g) * length + t, total, mask=t < length)


def window_scores(q_QWD: Tensor, k_HTD: Tensor, scaling: float) -> Tensor:
    """Softmax attention of the last W queries to every key; see `kernels.window_scores.window_scores`.

    Keys are read twice (once more per tile of rows of the group's window in the first pass), two launches and a small
    merge. Nothing larger than the result and `[Q, W]` per piece of the keys is written.
    """
    k_HTD = rows_of(k_HTD)
    heads, length, dim = k_HTD.shape
    queries, window, _ = q_QWD.shape
    assert q_QWD.dtype == k_HTD.dtype
    q, group = q_QWD.contiguous(), queries // heads
    rows = ROWS[q.element_size()]
    blocks = triton.cdiv(group * window, rows)
    # enough programs for a large GPU, in pieces of at least 512 keys
    splits = max(1, min(triton.cdiv(length, 512), 512 // (blocks * heads)))
    sizes = {
        "D": dim,
        "DP": max(16, triton.next_power_of_2(dim)),
        "ROWS": rows,
        "KEYS": KEYS,
        "num_stages": 2,
    }
    sizes["PRECISION"] = dot_precision(q.dtype)
    lse = q.new_empty(splits, queries, window, dtype=torch.float32)
    out = q.new_empty(queries, length, dtype=torch.float32)
    head_step = k_HTD.stride(0)
    window_lse[(blocks, heads, splits)](
        q, k_HTD, lse, length, window, group * window, head_step, scaling, **sizes, SPLITS=splits
    )
    if splits > 1:
        lse = lse.logsumexp(0)
    window_sums[(triton.cdiv(length, KEYS), heads)](
        q, k_HTD, lse, out, length, window, group, head_step, scaling, **sizes
    )
    return out
