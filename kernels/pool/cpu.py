"""The compiled CPU form of pooling."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from kvbench.kernels import build


def available() -> bool:
    """Whether a compiler with OpenMP was found."""
    return build.load(Path(__file__).with_name("pool.cpp")) is not None


def pool(scores: Tensor, kernel: int, kind: str, group: int) -> Tensor:
    """Sums of groups of rows, pooled; see `kernels.pool.pool`. The same numbers as torch, to the last bit."""
    library = build.load(Path(__file__).with_name("pool.cpp"))
    assert library is not None
    if group > 1:
        # torch's own sum, whose order depends on the shape; it takes 0.1 % of the time of the attention
        scores = scores.unflatten(0, (len(scores) // group, group)).sum(1)
    if kernel == 1:
        return scores
    scores = scores.float()
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    out = torch.empty(scores.shape)
    library.kvbench_pool(
        *(ctypes.c_void_p(x.data_ptr()) for x in (scores, out)),
        *map(ctypes.c_int64, (*out.shape, scores.stride(0), kernel)),
        ctypes.c_int(kind == "avg"),
    )
    return out
