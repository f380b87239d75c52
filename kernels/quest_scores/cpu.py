"""The compiled CPU form."""

from pathlib import Path

import torch
from torch import Tensor

from kvbench.kernels import build
from kvbench.kernels.dtypes import CODES

SOURCE = Path(__file__).with_name("quest.cpp")


def available() -> bool:
    """Whether a compiler with OpenMP was found."""
    return build.load(SOURCE) is not None


def quest_scores(q_RHGD: Tensor, low_RHPD: Tensor, high_RHPD: Tensor) -> Tensor:
    """Quest's bounds in fp32; see `kernels.quest_scores.quest_scores`."""
    q, low, high, sizes = _arguments(q_RHGD, low_RHPD, high_RHPD)
    out = torch.empty(*q.shape[:3], low.shape[2])
    call = build.function(SOURCE, "kvbench_quest_scores", "ppppnnnnnnnni")
    code = call(q.data_ptr(), low.data_ptr(), high.data_ptr(), out.data_ptr(), *sizes, CODES[low.dtype])
    assert code == 0, f"quest_scores: code {code}"
    return out


def quest_select(
    q_RHGD: Tensor, low_RHPD: Tensor, high_RHPD: Tensor, page: int, length: Tensor, pages: int, per_query_head: bool
) -> Tensor:  # fmt: skip
    """Slots of the pages with the highest bounds; see `kernels.quest_scores.quest_select`."""
    q, low, high, sizes = _arguments(q_RHGD, low_RHPD, high_RHPD)
    rows, heads, group, _ = q.shape
    lists = (rows, heads, group) if per_query_head else (rows, heads)
    out = torch.empty(*lists, pages * page, dtype=torch.int32)
    call = build.function(SOURCE, "kvbench_quest_select", "ppppnnnnnnnnnnnii")
    code = call(
        q.data_ptr(), low.data_ptr(), high.data_ptr(), out.data_ptr(), *sizes, page, int(length), pages,
        per_query_head, CODES[low.dtype],
    )  # fmt: skip
    assert code == 0, f"quest_select: code {code}"
    return out


def _arguments(
    q_RHGD: Tensor, low_RHPD: Tensor, high_RHPD: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """Queries in fp32, both edges with one layout and contiguous channels, and their sizes."""
    low, high = low_RHPD, high_RHPD
    if low.stride() != high.stride() or low.stride(3) != 1:
        low, high = low.contiguous(), high.contiguous()
    return q_RHGD.float().contiguous(), low, high, (*q_RHGD.shape, low.shape[2], *low.stride()[:3])
