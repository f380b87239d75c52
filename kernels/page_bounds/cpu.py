"""The compiled CPU form."""

import ctypes
from pathlib import Path

from torch import Tensor

from kvbench.kernels import build
from kvbench.kernels.dtypes import CODES, rows_of

SOURCE = Path(__file__).with_name("bounds.cpp")


def available() -> bool:
    """Whether a compiler with OpenMP was found."""
    return build.load(SOURCE) is not None


def page_bounds(k_BHTD: Tensor, page: int, pages: int) -> tuple[Tensor, Tensor]:
    """Bounds of consecutive runs of `page` keys; see `kernels.page_bounds.page_bounds`. Exact: no number is rounded."""
    k_BHTD = rows_of(k_BHTD)
    batch, heads, length, dim = k_BHTD.shape
    low, high = (k_BHTD.new_empty(batch, heads, pages, dim) for _ in range(2))
    sizes = (batch * heads, heads, length, page, pages, dim, k_BHTD.stride(0), k_BHTD.stride(1))
    call = build.function(SOURCE, "kvbench_page_bounds", "pppnnnnnnnni")
    code = call(k_BHTD.data_ptr(), low.data_ptr(), high.data_ptr(), *sizes, CODES[k_BHTD.dtype])
    assert code == 0, f"page_bounds: code {code}"
    return low, high


def update_page_bounds(low_BHPD: Tensor, high_BHPD: Tensor, k_BHD: Tensor, page: Tensor) -> None:
    """Widens the bounds of one page in place; see `kernels.page_bounds.update_page_bounds`."""
    assert low_BHPD.dtype == high_BHPD.dtype == k_BHD.dtype
    strides = (ctypes.c_int64 * 11)(*low_BHPD.stride(), *high_BHPD.stride(), *k_BHD.stride())
    call = build.function(SOURCE, "kvbench_update_page_bounds", "ppppnnnni")
    code = call(
        low_BHPD.data_ptr(), high_BHPD.data_ptr(), k_BHD.data_ptr(), ctypes.addressof(strides), *k_BHD.shape,
        int(page), CODES[k_BHD.dtype],
    )  # fmt: skip
    assert code == 0, f"update_page_bounds: code {code}"
