"""Exact top-k with a stable order: score descending, position ascending."""

import torch
from torch import Tensor

from kvbench.kernels import forms
from kvbench.kernels.top_k import cpu

#: raised when the numbers of any form change
VERSION = 1


def form(device: torch.device, dtype: torch.dtype) -> str:
    """The form that runs; see `forms.choose`."""
    return forms.choose(device, dtype, cpu.available)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Positions of the k highest scores, ascending: int64 `[..., min(k, T)]`, ties to the earlier position.

    The shape of the result does not depend on the scores, as CUDA graphs need.

    Args:
        scores: `[..., T]`; NaN ranks as infinity (Triton: above it, if its sign is positive).
        k: number of positions.
    """
    module = forms.dispatch(__name__, form, scores.device, scores.dtype)
    return module.top_k(scores, k)


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    """Mask of the k highest scores along the last dimension; among equal scores the earlier position wins.

    Args:
        scores: `[..., T]`; NaN ranks as infinity.
        k: number of positions, at most T are marked.

    Returns:
        bool `[..., T]` with exactly `min(k, T)` True per row.
    """
    # every form marks the same positions, so that a cell's id needs not tell them apart
    forms.note(f"{__name__}.top_k_mask", forms.portable)
    chosen = forms.choose(scores.device, scores.dtype, cpu.available, triton=False)
    return forms.load(__name__, chosen).top_k_mask(scores, k)


def lowest(scores: Tensor, k: int) -> Tensor:
    """Positions of the k lowest scores, descending: int64 `[..., min(k, T)]`, ties to the later position.

    The complement of `top_k` of the others.
    """
    return scores.shape[-1] - 1 - top_k(-scores.flip(-1), k)


def select_tokens(scores_XP: Tensor, tokens: int, page: int, length: Tensor) -> Tensor:
    """Slots of the pages of highest score, up to `tokens` tokens; among equal pages the earlier wins.

    Args:
        scores_XP: `[..., P]`; NaN ranks as infinity. Pages are runs of `page` slots, the last one may be
            partial.
        tokens: slots to select.
        page: tokens per page.
        length: slots in use, an integer tensor of one element.

    Returns:
        int32 `[..., tokens]`, ascending; padded with -1 if fewer slots are in use. The last page is cut to its first
        tokens if it does not fit.
    """
    module = forms.dispatch(__name__, form, scores_XP.device, scores_XP.dtype)
    return module.select_tokens(scores_XP, tokens, page, length)
