"""Channel-wise minimum and maximum of the keys of each page."""

import torch
from torch import Tensor


def page_bounds(k_BHTD: Tensor, page: int, pages: int) -> tuple[Tensor, Tensor]:
    """Bounds of consecutive runs of `page` keys, aligned at slot 0; the last page may be partial.

    Args:
        k_BHTD: keys `[..., T, D]`.
        page: tokens per page, any positive number.
        pages: pages to make room for, at least `ceil(T / page)`; those beyond are +inf and -inf.

    Returns:
        (minimum, maximum), each `[..., pages, D]` in the dtype of the keys.
    """
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
    """Widens in place the bounds of one page by one appended key.

    Args:
        low_BHPD: minima `[B, H, P, D]`.
        high_BHPD: maxima `[B, H, P, D]`.
        k_BHD: the appended key `[B, H, D]`.
        page: index of the page, a 1-element integer tensor on the same device (no host synchronisation).
    """
    key = k_BHD.unsqueeze(2)
    low_BHPD.index_copy_(2, page, torch.minimum(low_BHPD.index_select(2, page), key))
    high_BHPD.index_copy_(2, page, torch.maximum(high_BHPD.index_select(2, page), key))
