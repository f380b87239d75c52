"""The compiled CPU form."""

from pathlib import Path

import torch
from torch import Tensor

from kvbench.kernels import build
from kvbench.kernels.dtypes import CODES

SOURCE = Path(__file__).with_name("hsa.cpp")


def available() -> bool:
    """Whether a compiler with OpenMP was found."""
    return build.load(SOURCE) is not None


def hsa_scores(q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor) -> Tensor:
    """Mean over the group of the probability of one token of each page; see `kernels.hsa_scores.hsa_scores`.

    Among equal channel sums the earlier channel is chosen. `bounds_RHEP` must be contiguous.
    """
    assert bounds_RHEP.is_contiguous()
    rows, heads, group, dim = q_RHGD.shape
    edges, pages = bounds_RHEP.shape[2:]
    q, out = q_RHGD.float().contiguous(), torch.empty(rows, heads, pages)
    sizes = (rows * heads, group, dim, edges, pages, channels, page, int(length))
    call = build.function(SOURCE, "kvbench_hsa_scores", "pppnnnnnnnni")
    code = call(q.data_ptr(), bounds_RHEP.data_ptr(), out.data_ptr(), *sizes, CODES[bounds_RHEP.dtype])
    assert code == 0, f"hsa_scores: code {code}"
    return out
