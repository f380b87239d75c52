"""The compiled CPU form."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from kvbench.kernels import build


def available() -> bool:
    """Whether a compiler with OpenMP was found."""
    return build.load(Path(__file__).with_name("select.cpp")) is not None


def select_tokens(scores_XP: Tensor, tokens: int, page: int, length: Tensor) -> Tensor:
    """Slots of the pages of highest score, until they hold `tokens` tokens; see `kernels.top_k.select_tokens`."""
    return _select(scores_XP, tokens, page, int(length))


def top_k(scores: Tensor, k: int) -> Tensor:
    """Positions of the k highest scores; see `kernels.top_k.top_k`."""
    length = scores.shape[-1]
    return _select(scores, min(k, length), 1, length).long()


def _select(scores_XP: Tensor, tokens: int, page: int, length: int) -> Tensor:
    library = build.load(Path(__file__).with_name("select.cpp"))
    assert library is not None
    scores = scores_XP.float().contiguous()
    pages = scores.shape[-1]
    out = torch.empty(*scores.shape[:-1], max(0, tokens), dtype=torch.int32)
    if not out.numel():
        return out
    library.kvbench_select_tokens(
        ctypes.c_void_p(scores.data_ptr()),
        ctypes.c_void_p(out.data_ptr()),
        *map(ctypes.c_int64, (scores.numel() // pages, pages, page, length, tokens)),
    )
    return out
