"""The torch form."""

import torch
from torch import Tensor


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    """Mask of the k highest scores; see `kernels.top_k.top_k_mask`."""
    if k >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    # NaN ranks first, so that what it came from is read and seen; it equals nothing, itself included
    scores = torch.where(scores.isnan(), torch.inf, scores)
    threshold = scores.topk(k, dim=-1, sorted=True).values[..., -1:]
    above, equal = scores > threshold, scores == threshold
    room = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


def top_k(scores: Tensor, k: int) -> Tensor:
    """Positions of the k highest scores; see `kernels.top_k.top_k`."""
    length = scores.shape[-1]
    k = min(k, length)
    mask = top_k_mask(scores, k)
    place = torch.where(mask, mask.cumsum(-1) - 1, k)
    out = torch.empty(*scores.shape[:-1], k + 1, dtype=torch.long, device=scores.device)
    return out.scatter_(-1, place, torch.arange(length, device=scores.device).expand_as(place))[..., :k]


def select_tokens(scores_XP: Tensor, tokens: int, page: int, length: Tensor) -> Tensor:
    """Slots of the pages of highest score; see `kernels.top_k.select_tokens`."""
    slots = torch.arange(scores_XP.shape[-1] * page, device=scores_XP.device)
    by_slot = scores_XP.repeat_interleave(page, dim=-1).masked_fill(slots >= length, -torch.inf)
    chosen = top_k(by_slot, tokens)
    chosen = torch.where(chosen < length, chosen, -1).int()
    return torch.nn.functional.pad(chosen, (0, tokens - chosen.shape[-1]), value=-1)
