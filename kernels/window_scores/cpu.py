"""The compiled CPU form."""

import math
from pathlib import Path

import torch
from torch import Tensor

from kvbench.kernels import build
from kvbench.kernels.dtypes import CODES, rows_of

SOURCE = Path(__file__).with_name("windows.cpp")
#: queries in a vector, and queries that the C++ takes at a time
LANES, ROWS = 16, 32
#: bytes of logits that are held at a time
SCRATCH = 128 << 20


def available() -> bool:
    """Whether a compiler with OpenMP was found."""
    return build.load(SOURCE) is not None


def window_scores(q_QWD: Tensor, k_HTD: Tensor, scaling: float) -> Tensor:
    """Softmax attention of the last W queries to every key; see `kernels.window_scores.window_scores`.

    Logits are computed once and held until the sums of their exponentials are known, at most `SCRATCH` bytes of them,
    or those of 32 queries where these are more.
    """
    k_HTD = rows_of(k_HTD)
    heads, length, dim = k_HTD.shape
    queries, window, _ = q_QWD.shape
    group = queries // heads
    # a vector holds queries of one head
    padded = -(-window // LANES) * LANES
    rows = -(-group * padded // ROWS) * ROWS
    q_HRD = q_QWD.new_zeros(heads, rows, dim, dtype=torch.float32)
    of_head = q_HRD[:, : group * padded].view(heads, group, padded, dim)
    of_head[:, :, :window] = q_QWD.reshape(heads, group, window, dim)
    q_HRD *= scaling * math.log2(math.e)
    blocks = q_HRD.view(heads, rows // ROWS, ROWS, dim).transpose(2, 3).contiguous()
    out = torch.empty(queries, length)
    sizes = (heads, group, window, padded, rows, dim, length, k_HTD.stride(0), SCRATCH)
    call = build.function(SOURCE, "kvbench_window_scores", "pppnnnnnnnnni")
    code = call(blocks.data_ptr(), k_HTD.data_ptr(), out.data_ptr(), *sizes, CODES[k_HTD.dtype])
    assert code == 0, f"window_scores: code {code}"
    return out
