"""The compiled CPU form: every (row, KV head) of a layer in one call, ragged lengths, no copies."""

import ctypes
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kvbench.kernels import build
from kvbench.kernels.dtypes import CODES

MAX_GROUP = 32
#: rows of the job table, in the order of the C++ struct
FIELDS = ("k_prefix", "v_prefix", "prefix", "k_tail", "v_tail", "tail", "index", "indexed", "mask")


HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)


def available(group: int = 1, head_dim: int = 128) -> bool:
    """Whether the form can be used: the shape is compiled in, and a compiler with OpenMP was found."""
    fits = group <= MAX_GROUP and head_dim in HEAD_DIMS
    return fits and build.load(Path(__file__).with_name("decode.cpp")) is not None


def sparse_decode(
    q_JGD: Tensor, table: np.ndarray, scaling: float, dtype: torch.dtype, with_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Decode attention of J jobs, a job being one row and KV head.

    Args:
        q_JGD: queries `[J, G, D]` fp32, contiguous.
        table: int64 `[9, J]`, the rows named by `FIELDS`: addresses and lengths of prefix and tail, address and
            length of an int32 slot list (0: read every slot; negative entries are skipped), address of a uint8
            mask `[G, prefix]` (0: none). The caller keeps what it points to alive.
        scaling: factor on the logits.
        dtype: element type of keys and values: float32, bfloat16 or float16.
        with_lse: also return the natural-log sum of exponentials.

    Returns:
        Output `[J, G, D]` fp32 and lse `[J, G]` fp32 (or None). A job without slots gives zeros and -inf.
    """
    library = build.load(Path(__file__).with_name("decode.cpp"))
    assert library is not None and q_JGD.is_contiguous() and q_JGD.dtype == torch.float32
    assert table.dtype == np.int64 and table.flags.c_contiguous
    jobs, group, dim = q_JGD.shape
    out = torch.empty_like(q_JGD)
    lse = torch.empty(jobs, group) if with_lse else None
    code = library.kvbench_sparse_decode(
        ctypes.c_void_p(q_JGD.data_ptr()),
        ctypes.c_void_p(out.data_ptr()),
        ctypes.c_void_p(lse.data_ptr() if lse is not None else 0),
        ctypes.c_void_p(table.ctypes.data),
        ctypes.c_int64(jobs),
        ctypes.c_int64(group),
        ctypes.c_int64(dim),
        ctypes.c_float(scaling),
        ctypes.c_int(CODES[dtype]),
    )
    assert code == 0, f"sparse_decode: code {code}"
    return out, lse
