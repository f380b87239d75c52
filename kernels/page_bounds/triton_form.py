"""The Triton form: keys are read once, bounds are written channel-major, as hybrid sparse attention reads them."""

import triton
import triton.language as tl
from torch import Tensor

from kvbench.kernels.dtypes import rows_of

PAGES = 16


@triton.jit
def page_bounds_build(
    K, Bounds, length, page, pages, k_row, k_head, heads,
    D: tl.constexpr, DP: tl.constexpr, PAGES: tl.constexpr,
):  # fmt: skip
    """Bounds of some pages of one row and KV head."""
    job = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * PAGES + tl.arange(0, PAGES)
    d = tl.arange(0, DP)
    low = tl.full([PAGES, DP], float("inf"), tl.float32)
    high = tl.full([PAGES, DP], float("-inf"), tl.float32)
    base = K + job // heads * k_row + job % heads * k_head
    for n in range(0, page):
        t = p * page + n
        inside = ((t < length) & (p < pages))[:, None] & (d < D)[None, :]
        at = base + t.to(tl.int64)[:, None] * D + d[None, :]
        # loaded once; the bits of the dtype survive fp32
        k = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        low = tl.minimum(low, tl.where(inside, k, float("inf")))
        high = tl.maximum(high, tl.where(inside, k, float("-inf")))
    to = Bounds + job * 2 * D * pages + d.to(tl.int64)[None, :] * pages + p[:, None]
    some = (p < pages)[:, None] & (d < D)[None, :]
    tl.store(to, low.to(Bounds.dtype.element_ty), mask=some)
    tl.store(to + D * pages, high.to(Bounds.dtype.element_ty), mask=some)


@triton.jit
def page_bounds_update(
    Low, High, K, Page, heads, low_row, low_head, low_page, low_dim, high_row, high_head, high_page, high_dim,
    k_row, k_head, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Widens one page of one row and KV head by one key."""
    row, head = (tl.program_id(0) // heads).to(tl.int64), (tl.program_id(0) % heads).to(tl.int64)
    page = tl.load(Page).to(tl.int64)
    d = tl.arange(0, DP)
    k = tl.load(K + row * k_row + head * k_head + d, mask=d < D, other=0.0).to(tl.float32)
    low_at = Low + row * low_row + head * low_head + page * low_page + d * low_dim
    high_at = High + row * high_row + head * high_head + page * high_page + d * high_dim
    low = tl.load(low_at, mask=d < D, other=0.0).to(tl.float32)
    high = tl.load(high_at, mask=d < D, other=0.0).to(tl.float32)
    tl.store(low_at, tl.minimum(low, k).to(Low.dtype.element_ty), mask=d < D)
    tl.store(high_at, tl.maximum(high, k).to(High.dtype.element_ty), mask=d < D)


def page_bounds(k_BHTD: Tensor, page: int, pages: int) -> tuple[Tensor, Tensor]:
    """Bounds of consecutive runs of `page` keys; see `kernels.page_bounds.page_bounds`.

    They are views of one channel-major tensor `[B, H, 2 D, pages]`, which `minimum._base` is.
    """
    k_BHTD = rows_of(k_BHTD)
    batch, heads, length, dim = k_BHTD.shape
    bounds = k_BHTD.new_empty(batch, heads, 2 * dim, pages)
    if pages:
        page_bounds_build[(batch * heads, triton.cdiv(pages, PAGES))](
            k_BHTD, bounds, length, page, pages, k_BHTD.stride(0), k_BHTD.stride(1), heads,
            D=dim, DP=triton.next_power_of_2(dim), PAGES=PAGES,
        )  # fmt: skip
    low, high = bounds.transpose(-1, -2).split(dim, dim=-1)
    return low, high


def update_page_bounds(low_BHPD: Tensor, high_BHPD: Tensor, k_BHD: Tensor, page: Tensor) -> None:
    """Widens the bounds of one page in place; see `kernels.page_bounds.update_page_bounds`."""
    batch, heads, _, dim = low_BHPD.shape
    assert k_BHD.stride(2) == 1
    page_bounds_update[(batch * heads,)](
        low_BHPD, high_BHPD, k_BHD, page, heads, *low_BHPD.stride(), *high_BHPD.stride(), *k_BHD.stride()[:2],
        D=dim, DP=triton.next_power_of_2(dim), num_warps=1,
    )  # fmt: skip
