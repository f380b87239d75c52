"""The Triton form: both bounds of a page are read once for the whole group."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvbench.kernels.dtypes import dot_precision

PAGES = 32


@triton.jit
def quest_bounds(
    Q, Low, High, Out, pages, heads, low_row, low_head, low_page, low_dim, high_row, high_head, high_page, high_dim,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, PAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Upper bounds of some pages for the group."""
    job = tl.program_id(0).to(tl.int64)
    row, head = job // heads, job % heads
    p = tl.program_id(1) * PAGES + tl.arange(0, PAGES)
    g, d = tl.arange(0, GP), tl.arange(0, DP)
    q = tl.load(
        Q + (job * G + g)[:, None] * D + d[None, :], mask=(g < G)[:, None] & (d < D)[None, :], other=0.0
    )
    inside = (d < D)[:, None] & (p < pages)[None, :]
    low = tl.load(
        Low + row * low_row + head * low_head + p.to(tl.int64)[None, :] * low_page + d[:, None] * low_dim,
        mask=inside, other=0.0,
    )  # fmt: skip
    high = tl.load(
        High + row * high_row + head * high_head + p.to(tl.int64)[None, :] * high_page + d[:, None] * high_dim,
        mask=inside, other=0.0,
    )  # fmt: skip
    wide = q.to(tl.float32)
    up, down = tl.maximum(wide, 0.0).to(q.dtype), tl.minimum(wide, 0.0).to(q.dtype)
    bound = tl.dot(up, high, input_precision=PRECISION)
    bound = tl.dot(down, low, bound, input_precision=PRECISION)
    tl.store(
        Out + (job * G + g)[:, None] * pages + p[None, :], bound, mask=(g < G)[:, None] & (p < pages)[None, :]
    )


def quest_scores(q_RHGD: Tensor, low_RHPD: Tensor, high_RHPD: Tensor) -> Tensor:
    """Quest's bounds; see `kernels.quest_scores.quest_scores`. Products of 16-bit numbers are summed in fp32."""
    rows, heads, group, dim = q_RHGD.shape
    pages = low_RHPD.shape[2]
    out = q_RHGD.new_empty(rows, heads, group, pages, dtype=torch.float32)
    quest_bounds[(rows * heads, triton.cdiv(pages, PAGES))](
        q_RHGD.contiguous(), low_RHPD, high_RHPD, out, pages, heads, *low_RHPD.stride(), *high_RHPD.stride(),
        G=group, GP=max(16, triton.next_power_of_2(group)), D=dim, DP=max(16, triton.next_power_of_2(dim)),
        PAGES=PAGES, PRECISION=dot_precision(q_RHGD.dtype),
    )  # fmt: skip
    return out
