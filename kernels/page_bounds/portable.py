"""The torch form."""

import torch
from torch import Tensor


def page_bounds(k_BHTD: Tensor, page: int, pages: int) -> tuple[Tensor, Tensor]:
    """Bounds of consecutive runs of `page` keys; see `kernels.page_bounds.page_bounds`."""
    *lead, length, dim = k_BHTD.shape
    full, rest = divmod(length, page)
    low = k_BHTD.new_full((*lead, pages, dim), torch.inf)
    high = k_BHTD.new_full((*lead, pages, dim), -torch.inf)
    if full:
        runs = k_BHTD[..., : full * page, :].reshape(*lead, full, page, dim)
        low[..., :full, :], high[..., :full, :] = runs.amin(-2), runs.amax(-2)
    if rest:
        run = k_BHTD[..., full * page :, :]
        low[..., full, :], high[..., full, :] = run.amin(-2), run.amax(-2)
    return low, high


def update_page_bounds(low_BHPD: Tensor, high_BHPD: Tensor, k_BHD: Tensor, page: Tensor) -> None:
    """Widens the bounds of one page in place; see `kernels.page_bounds.update_page_bounds`."""
    key = k_BHD.unsqueeze(2)
    low_BHPD.index_copy_(2, page, torch.minimum(low_BHPD.index_select(2, page), key))
    high_BHPD.index_copy_(2, page, torch.maximum(high_BHPD.index_select(2, page), key))
