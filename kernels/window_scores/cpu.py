"""The compiled CPU form."""

import ctypes
import math
from pathlib import Path

import torch
from torch import Tensor

from kvbench.kernels import build
from kvbench.kernels.dtypes import CODES

#: query rows that the C++ takes at a time
ROWS = 4


def available() -> bool:
    """Whether a compiler with OpenMP was found."""
    return build.load(Path(__file__).with_name("windows.cpp")) is not None


def window_scores(q_QWD: Tensor, k_HTD: Tensor, scaling: float) -> Tensor:
    """Softmax attention of the last W queries to every key; see `kernels.window_scores.window_scores`.

    The logits are computed twice, 64 keys at a time, and never stored. Each head of the keys must be contiguous.
    """
    library = build.load(Path(__file__).with_name("windows.cpp"))
    heads, length, dim = k_HTD.shape
    queries, window, _ = q_QWD.shape
    assert library is not None and k_HTD.stride()[1:] == (dim, 1)
    group = queries // heads
    rows = -(-group * window // ROWS) * ROWS
    q_HRD = q_QWD.new_zeros(heads, rows, dim, dtype=torch.float32)
    q_HRD[:, : group * window] = q_QWD.reshape(heads, group * window, dim)
    q_HRD *= scaling * math.log2(math.e)
    out = torch.empty(queries, length)
    sizes = (heads, group, window, rows, dim, length, k_HTD.stride(0))
    code = library.kvbench_window_scores(
        *(ctypes.c_void_p(x.data_ptr()) for x in (q_HRD, k_HTD, out)),
        *map(ctypes.c_int64, sizes),
        ctypes.c_int(CODES[k_HTD.dtype]),
    )
    assert code == 0, f"window_scores: code {code}"
    return out
