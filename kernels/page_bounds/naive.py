"""Page bounds, key by key: the slow reference."""

import torch
from torch import Tensor


def page_bounds(k_BHTD: Tensor, page: int, pages: int) -> tuple[Tensor, Tensor]:
    """Channel-wise minimum and maximum of each page; see `kernels.page_bounds.page_bounds`."""
    low = torch.full((*k_BHTD.shape[:2], pages, k_BHTD.shape[3]), torch.inf).to(k_BHTD)
    high = -low
    for slot in range(k_BHTD.shape[2]):
        update_page_bounds(low, high, k_BHTD[:, :, slot], torch.tensor([slot // page]))
    return low, high


def update_page_bounds(low_BHPD: Tensor, high_BHPD: Tensor, k_BHD: Tensor, page: Tensor) -> None:
    """Widens one page by one key; see `kernels.page_bounds.update_page_bounds`."""
    at = int(page)
    low_BHPD[:, :, at] = torch.minimum(low_BHPD[:, :, at], k_BHD)
    high_BHPD[:, :, at] = torch.maximum(high_BHPD[:, :, at], k_BHD)
