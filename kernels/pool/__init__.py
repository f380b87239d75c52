"""From the attention of tokens to the scores that are ranked: pooling over neighbours, and sums of chunks."""

import torch
from torch import Tensor

from kvbench.kernels import forms
from kvbench.kernels.pool import cpu, portable

#: raised when the numbers of any form change
VERSION = 1
#: widest pooling and longest run that the Triton form holds in one program
WIDEST = 2048


def form(device: torch.device, dtype: torch.dtype, width: int = 1) -> str:
    """The form that runs; see `forms.choose`."""
    return forms.choose(device, dtype, cpu.available, triton=width <= WIDEST)


def sums_form(device: torch.device, dtype: torch.dtype, width: int = 1) -> str:
    """The form of `chunk_sums`.

    There is no compiled form: on a CPU the torch form takes 0.4 % of the time of the attention that is summed.
    """
    return forms.choose(device, dtype, triton=width <= WIDEST)


def pool(scores: Tensor, kernel: int, kind: str, group: int = 1) -> Tensor:
    """Sums groups of neighbouring rows, then pools along the last dimension with stride 1 and the same length.

    Args:
        scores: `[N, T]`, N a multiple of `group`.
        kernel: odd width; 1 does not pool.
        kind: "max", or "avg" (padding counts as zeros, as in the official SnapKV).
        group: rows to sum, the query heads of a KV head.

    Returns:
        `[N / group, T]`.
    """
    if not scores.numel():
        return portable.pool(scores, kernel, kind, group)
    module = forms.dispatch(__name__, form, scores.device, scores.dtype, kernel)
    return module.pool(scores, kernel, kind, group)


def chunk_sums(scores_HT: Tensor, chunk: int, offset: int = 0) -> Tensor:
    """Sums over runs of `chunk` neighbours; the first run ends at `offset`, the last one with the scores.

    Args:
        scores_HT: `[H, T]`.
        chunk: length of a run.
        offset: start of the second run, below `chunk`; 0 for runs from the start.

    Returns:
        `[H, C]`, C = ceil((T + (-offset) % chunk) / chunk), or 0 without scores. Source: ChunkKV, Liu et al. 2025,
        arXiv 2502.00299, Algorithm 1.
    """
    if not scores_HT.numel():
        return portable.chunk_sums(scores_HT, chunk, offset)
    where = scores_HT.device, scores_HT.dtype
    module = forms.dispatch(__name__, sums_form, *where, chunk, part="chunk_sums")
    return module.chunk_sums(scores_HT, chunk, offset)
