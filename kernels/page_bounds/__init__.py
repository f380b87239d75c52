"""Channel-wise minimum and maximum of the keys of each page."""

import torch
from torch import Tensor

from kvbench.kernels import forms
from kvbench.kernels.page_bounds import cpu

#: raised when the numbers of any form change
VERSION = 1


def form(device: torch.device, dtype: torch.dtype) -> str:
    """The form that runs; see `forms.choose`."""
    return forms.choose(device, dtype, cpu.available)


def page_bounds(k_BHTD: Tensor, page: int, pages: int) -> tuple[Tensor, Tensor]:
    """Bounds of consecutive runs of `page` keys, aligned at slot 0; the last page may be partial.

    Args:
        k_BHTD: keys `[B, H, T, D]`.
        page: tokens per page, any positive number.
        pages: pages to allocate, at least `ceil(T / page)`; those beyond are +inf and -inf.

    Returns:
        (minimum, maximum), each `[B, H, pages, D]` in the dtype of the keys, with any strides.
    """
    module = forms.dispatch(__name__, form, k_BHTD.device, k_BHTD.dtype)
    return module.page_bounds(k_BHTD, page, pages)


def update_page_bounds(low_BHPD: Tensor, high_BHPD: Tensor, k_BHD: Tensor, page: Tensor) -> None:
    """Widens the bounds of one page by one appended key, in place.

    Args:
        low_BHPD: minima `[B, H, P, D]`.
        high_BHPD: maxima `[B, H, P, D]`.
        k_BHD: the appended key `[B, H, D]`.
        page: index of the page, a 1-element integer tensor on the same device (no host synchronisation).
    """
    module = forms.dispatch(__name__, form, low_BHPD.device, low_BHPD.dtype)
    module.update_page_bounds(low_BHPD, high_BHPD, k_BHD, page)
