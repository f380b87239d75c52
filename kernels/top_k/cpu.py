"""The compiled CPU form."""

from pathlib import Path

import torch
from torch import Tensor

from kvbench.kernels import build

SOURCE = Path(__file__).with_name("select.cpp")


def available() -> bool:
    """Whether a compiler with OpenMP was found."""
    return build.load(SOURCE) is not None


def select_tokens(scores_XP: Tensor, tokens: int, page: int, length: Tensor) -> Tensor:
    """Slots of the pages of highest score, until they hold `tokens` tokens; see `kernels.top_k.select_tokens`."""
    return _select(scores_XP, tokens, page, int(length))


def top_k(scores: Tensor, k: int) -> Tensor:
    """Positions of the k highest scores; see `kernels.top_k.top_k`."""
    length = scores.shape[-1]
    return _select(scores, min(k, length), 1, length).long()


def top_k_mask(scores: Tensor, k: int) -> Tensor:
    """Mask of the k highest scores; see `kernels.top_k.top_k_mask`."""
    length = scores.shape[-1]
    if not 0 < k < length:
        return torch.full(scores.shape, k > 0)
    scores = scores.float().contiguous()
    out = torch.empty(scores.shape, dtype=torch.bool)
    call = build.function(SOURCE, "kvbench_top_k_mask", "ppnnn")
    call(scores.data_ptr(), out.data_ptr(), scores.numel() // length, length, k)
    return out


def _select(scores_XP: Tensor, tokens: int, page: int, length: int) -> Tensor:
    scores = scores_XP.float().contiguous()
    pages = scores.shape[-1]
    out = torch.empty(*scores.shape[:-1], max(0, tokens), dtype=torch.int32)
    if not out.numel():
        return out
    call = build.function(SOURCE, "kvbench_select_tokens", "ppnnnnn")
    call(scores.data_ptr(), out.data_ptr(), scores.numel() // pages, pages, page, length, tokens)
    return out
