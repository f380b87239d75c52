"""The compiled CPU form: every (row, KV head) of a layer in one call, ragged lengths, no copies."""

import ctypes
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kvbench.kernels import build
from kvbench.kernels.dtypes import CODES, rows_of

MAX_GROUP = 32
#: rows of the job table, in the order of the C++ struct
FIELDS: tuple[str, ...] = (
    "k_prefix",
    "v_prefix",
    "prefix",
    "k_tail",
    "v_tail",
    "tail",
    "index",
    "indexed",
    "mask",
)


HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)


def available(group: int = 1, head_dim: int = 128) -> bool:
    """Whether the form can be used: the shape is compiled in, and a compiler with OpenMP was found."""
    fits = group <= MAX_GROUP and head_dim in HEAD_DIMS
    return fits and build.load(Path(__file__).with_name("decode.cpp")) is not None


def new_table(rows: int, heads: int) -> np.ndarray:
    """An empty job table for the rows and KV heads of a layer: int64 `[9, rows, heads]`."""
    return np.zeros((len(FIELDS), rows, heads), dtype=np.int64)


def addresses(x_BHX: Tensor, rows: int) -> np.ndarray:
    """Where each row's and KV head's part of a tensor begins: `[rows, heads]`; B = 1 when the rows share it."""
    row = np.arange(rows)[:, None] * (x_BHX.stride(0) if x_BHX.shape[0] > 1 else 0)
    return x_BHX.data_ptr() + (row + np.arange(x_BHX.shape[1]) * x_BHX.stride(1)) * x_BHX.element_size()


def decode_jobs(
    q_JGD: Tensor, table: np.ndarray, scaling: float, dtype: torch.dtype, with_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Decode attention of J jobs, a job being one row and KV head.

    Args:
        q_JGD: queries `[J, G, D]` fp32, contiguous.
        table: int64 `[9, J]` or `[9, rows, heads]`, the fields named by `FIELDS`: addresses and lengths of prefix and
            tail, address and length of an int32 slot list (0: read every slot; negative entries are skipped),
            address of a uint8 mask `[G, prefix]` (0: none). The caller keeps what it points to alive.
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


def sparse_decode(
    q_RHGD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, k_tail_RHMD: Tensor, v_tail_RHMD: Tensor, tail: Tensor,
    scaling: float, index_RHN: Tensor | None = None, mask_HGK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Decode attention of R rows that share one layout; see `kernels.sparse_decode.sparse_decode`.

    With an index per query head each query head is a job of its own.
    """
    rows, heads, group, dim = q_RHGD.shape
    k, v, k_tail, v_tail = (rows_of(x) for x in (k_BHKD, v_BHKD, k_tail_RHMD, v_tail_RHMD))
    share = group if index_RHN is not None and index_RHN.dim() == 4 else 1
    table = np.zeros((len(FIELDS), rows, heads, share), dtype=np.int64)
    fields = dict(zip(FIELDS, table, strict=True))
    for name, x in (("k_prefix", k), ("v_prefix", v), ("k_tail", k_tail), ("v_tail", v_tail)):
        fields[name][:] = addresses(x, rows)[..., None]
    fields["prefix"][:], fields["tail"][:] = k.shape[2], int(tail)
    index = mask = None
    if index_RHN is not None:
        index = index_RHN.int().reshape(rows, heads * share, index_RHN.shape[-1]).contiguous()
        fields["index"][:] = addresses(index, rows).reshape(rows, heads, share)
        fields["indexed"][:] = index.shape[2]
    if mask_HGK is not None:
        mask = mask_HGK.reshape(1, heads * share, group // share * k.shape[2]).contiguous()
        fields["mask"][:] = addresses(mask, rows).reshape(rows, heads, share)
    q_JGD = q_RHGD.float().contiguous().view(rows * heads * share, group // share, dim)
    out, lse = decode_jobs(q_JGD, table.reshape(len(FIELDS), -1), scaling, k.dtype, with_lse=True)
    assert lse is not None
    return out.view(q_RHGD.shape).to(q_RHGD.dtype), lse.view(q_RHGD.shape[:3])
