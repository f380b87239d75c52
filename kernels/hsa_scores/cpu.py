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
    out = torch.empty(*q_RHGD.shape[:2], bounds_RHEP.shape[3])
    _call(q_RHGD, bounds_RHEP, channels, page, length, scores=out)
    return out


def hsa_select(
    q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor, tokens: int
) -> Tensor:
    """Slots of the most probable pages in one call; see `kernels.hsa_scores.hsa_select`."""
    out = torch.empty(*q_RHGD.shape[:2], tokens, dtype=torch.int32)
    _call(q_RHGD, bounds_RHEP, channels, page, length, slots=out)
    return out


def _call(
    q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor, scores: Tensor | None = None,
    slots: Tensor | None = None,
) -> None:  # fmt: skip
    assert bounds_RHEP.is_contiguous()
    rows, heads, group, dim = q_RHGD.shape
    q = q_RHGD.float().contiguous()
    out, chosen = (x.data_ptr() if x is not None else 0 for x in (scores, slots))
    tokens = slots.shape[2] if slots is not None else 0
    sizes = (rows * heads, group, dim, *bounds_RHEP.shape[2:], channels, page, int(length), tokens)
    call = build.function(SOURCE, "kvbench_hsa_scores", "ppppnnnnnnnnni")
    code = call(q.data_ptr(), bounds_RHEP.data_ptr(), out, chosen, *sizes, CODES[bounds_RHEP.dtype])
    assert code == 0, f"hsa_scores: code {code}"
