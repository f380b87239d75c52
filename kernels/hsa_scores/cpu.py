"""The compiled CPU form."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from kvbench.kernels import build
from kvbench.kernels.dtypes import CODES


def available() -> bool:
    """Whether a compiler with OpenMP was found."""
    return build.load(Path(__file__).with_name("hsa.cpp")) is not None


def hsa_scores(q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor) -> Tensor:
    """Mean over the group of the probability of one token of each page; see `kernels.hsa_scores.hsa_scores`.

    Among equal channel sums the earlier channel is chosen. `bounds_RHEP` must be contiguous.
    """
    library = build.load(Path(__file__).with_name("hsa.cpp"))
    assert library is not None and bounds_RHEP.is_contiguous()
    rows, heads, group, dim = q_RHGD.shape
    edges, pages = bounds_RHEP.shape[2:]
    q, out = q_RHGD.float().contiguous(), torch.empty(rows, heads, pages)
    sizes = (rows * heads, group, dim, edges, pages, channels, page, int(length))
    code = library.kvbench_hsa_scores(
        *(ctypes.c_void_p(x.data_ptr()) for x in (q, bounds_RHEP, out)),
        *map(ctypes.c_int64, sizes),
        ctypes.c_int(CODES[bounds_RHEP.dtype]),
    )
    assert code == 0, f"hsa_scores: code {code}"
    return out
