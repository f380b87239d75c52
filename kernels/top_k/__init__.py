"""Exact top-k with a stable order: score descending, position ascending."""

import torch
from torch import Tensor


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    """Marks the k highest scores along the last dimension; among equal scores the earlier position wins.

    Args:
        scores: `[..., T]`, no NaN.
        k: how many, at most T are marked.

    Returns:
        bool `[..., T]` with exactly `min(k, T)` True per row.
    """
    if k >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.topk(k, dim=-1, sorted=True).values[..., -1:]
    above, equal = scores > threshold, scores == threshold
    room = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


def top_k(scores: Tensor, k: int) -> Tensor:
    """Positions of the k highest scores, ascending: int64 `[..., min(k, T)]`, ties to the earlier position.

    The shape of the result does not depend on the scores, so that a CUDA graph can hold it.
    """
    length = scores.shape[-1]
    k = min(k, length)
    mask = top_k_mask(scores, k)
    place = torch.where(mask, mask.cumsum(-1) - 1, k)
    out = torch.empty(*scores.shape[:-1], k + 1, dtype=torch.long, device=scores.device)
    return out.scatter_(-1, place, torch.arange(length, device=scores.device).expand_as(place))[..., :k]
