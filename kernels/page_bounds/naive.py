"""Page bounds, key by key: the slow reference."""

import torch
from torch import Tensor


def page_bounds(k_TD: Tensor, page: int, pages: int) -> tuple[Tensor, Tensor]:
    """Channel-wise minimum and maximum of each page of one KV head, in fp64.

    Args:
        k_TD: keys in cache order `[T, D]`.
        page: tokens per page.
        pages: pages to make room for; those without keys are +inf and -inf.

    Returns:
        (minimum, maximum), each `[pages, D]`.
    """
    low = torch.full((pages, k_TD.shape[1]), torch.inf, dtype=torch.float64)
    high = -low
    for slot, key in enumerate(k_TD.double()):
        low[slot // page] = torch.minimum(low[slot // page], key)
        high[slot // page] = torch.maximum(high[slot // page], key)
    return low, high
