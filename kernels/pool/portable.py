"""The torch form."""

import torch
from torch import Tensor


def pool(scores: Tensor, kernel: int, kind: str, group: int) -> Tensor:
    """Sums of groups of rows, pooled; see `kernels.pool.pool`."""
    if group > 1:
        scores = scores.unflatten(0, (len(scores) // group, group)).sum(1)
    if kernel == 1 or not scores.numel():
        return scores
    function = torch.nn.functional.max_pool1d if kind == "max" else torch.nn.functional.avg_pool1d
    return function(scores[:, None], kernel, stride=1, padding=kernel // 2)[:, 0]


def chunk_sums(scores_HT: Tensor, chunk: int, offset: int) -> Tensor:
    """Sums over runs; see `kernels.pool.chunk_sums`."""
    heads, length = scores_HT.shape
    first = min(length, offset or chunk)
    count = -(-(length + -offset % chunk) // chunk) if length else 0
    # a row per run, so that the sums have one order on every device
    rows_HX = scores_HT.new_zeros(heads, count * chunk)
    rows_HX[:, :first] = scores_HT[:, :first]
    rows_HX[:, chunk : chunk + length - first] = scores_HT[:, first:]
    return rows_HX.view(heads, count, chunk).sum(-1)
