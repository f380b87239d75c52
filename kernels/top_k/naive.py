"""Selection by sorting: the slow reference."""

import math

import torch
from torch import Tensor


def slots_of(scores_P: Tensor, tokens: int, page: int, length: int) -> list[int]:
    """Slots of the pages of highest score until they hold `tokens` tokens, ascending.

    Args:
        scores_P: one score per page.
        tokens: slots wanted.
        page: tokens per page; 1 makes this the top-k of slots.
        length: slots in use; the last page may be partial.
    """
    scores = [math.inf if math.isnan(score) else score for score in scores_P.tolist()]
    # sorted keeps the order of equal pages
    ranked = sorted(range(-(-length // page)), key=lambda n: -scores[n])
    slots = [slot for n in ranked for slot in range(n * page, min((n + 1) * page, length))]
    return sorted(slots[:tokens])


def select_tokens(scores_XP: Tensor, tokens: int, page: int, length: Tensor) -> Tensor:
    """Slots of the pages of highest score; see `kernels.top_k.select_tokens`."""
    out = torch.full((scores_XP.shape[:-1].numel(), tokens), -1, dtype=torch.int32)
    for row, scores in zip(out, scores_XP.flatten(0, -2), strict=True):
        slots = slots_of(scores, tokens, page, int(length))
        row[: len(slots)] = torch.tensor(slots)
    return out.view(*scores_XP.shape[:-1], tokens)


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    """Mask of the k highest scores; see `kernels.top_k.top_k_mask`."""
    rows = scores.reshape(-1, scores.shape[-1])
    mask = torch.zeros(rows.shape, dtype=torch.bool)
    return mask.scatter_(-1, top_k(rows, max(0, k)), True).view(scores.shape)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Positions of the k highest scores; see `kernels.top_k.top_k`."""
    length = scores.shape[-1]
    return select_tokens(scores, min(k, length), 1, torch.tensor(length)).long()
