"""Pooling and chunk sums, one number at a time in fp64: the exact, slow reference."""

import torch
from torch import Tensor


def pool(scores: Tensor, kernel: int, kind: str, group: int) -> Tensor:
    """Sums of groups of rows, pooled; see `kernels.pool.pool`. fp64."""
    rows = scores.double().unflatten(0, (len(scores) // group, group)).sum(1)
    half, length = kernel // 2, rows.shape[1]
    out = torch.empty_like(rows)
    for t in range(length):
        near = rows[:, max(0, t - half) : t + half + 1]
        out[:, t] = near.amax(1) if kind == "max" else near.sum(1) / kernel
    return out


def chunk_sums(scores_HT: Tensor, chunk: int, offset: int) -> Tensor:
    """Sums over runs; see `kernels.pool.chunk_sums`. fp64."""
    length = scores_HT.shape[1]
    begins = [0] * (length > 0) + list(range(offset or chunk, length, chunk))
    ends = [*begins[1:], length]
    sums = [scores_HT[:, low:high].double().sum(1) for low, high in zip(begins, ends, strict=False)]
    return torch.stack(sums, 1) if sums else scores_HT.double()
