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

#: length that stands for no list of slots
EVERY_SLOT = -1

SOURCE = Path(__file__).with_name("decode.cpp")
HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)


def available(group: int = 1, head_dim: int = 128) -> bool:
    """Whether the form can be used: it is compiled for the shape, and a compiler with OpenMP was found."""
    fits = group <= MAX_GROUP and head_dim in HEAD_DIMS
    return fits and build.load(SOURCE) is not None


def new_table(rows: int, heads: int) -> np.ndarray:
    """An empty job table for the rows and KV heads of a layer: int64 `[9, rows, heads]`, no slots and no lists."""
    table = np.zeros((len(FIELDS), rows, heads), dtype=np.int64)
    table[FIELDS.index("indexed")] = EVERY_SLOT
    return table


def addresses(x_BHX: Tensor, rows: int) -> np.ndarray:
    """Start addresses of each row and KV head of a tensor: `[rows, heads]`; B = 1 when the rows share it."""
    row = np.arange(rows)[:, None] * (x_BHX.stride(0) if x_BHX.shape[0] > 1 else 0)
    return x_BHX.data_ptr() + (row + np.arange(x_BHX.shape[1]) * x_BHX.stride(1)) * x_BHX.element_size()


def decode_jobs(
    q_JGD: Tensor, table: np.ndarray, scaling: float, dtype: torch.dtype, with_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Decode attention of J jobs, a job being one row and KV head.

    Args:
        q_JGD: queries `[J, G, D]` fp32, contiguous.
        table: int64 `[9, J]` or `[9, rows, heads]`, the fields named by `FIELDS`: addresses and lengths of prefix and
            tail, address and length of an int32 slot list (length `EVERY_SLOT`: no list, every slot is read; negative
            entries are skipped), address of a uint8 mask `[G, prefix]` (0: none). The caller keeps the tensors alive.
        scaling: factor on the logits.
        dtype: element type of keys and values: float32, bfloat16 or float16.
        with_lse: also return the natural-log sum of exponentials.

    Returns:
        Output `[J, G, D]` fp32 and lse `[J, G]` fp32 (or None). A job without slots gives zeros and -inf.
    """
    assert q_JGD.is_contiguous() and q_JGD.dtype == torch.float32
    assert table.dtype == np.int64 and table.flags.c_contiguous
    jobs, group, dim = q_JGD.shape
    out = torch.empty_like(q_JGD)
    lse = torch.empty(jobs, group) if with_lse else None
    call = build.function(SOURCE, "kvbench_sparse_decode", "ppppnnnfi")
    code = call(
        q_JGD.data_ptr(), out.data_ptr(), lse.data_ptr() if lse is not None else 0, table.ctypes.data,
        jobs, group, dim, scaling, CODES[dtype],
    )  # fmt: skip
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
    q = q_RHGD.contiguous()
    stored = [rows_of(x) for x in (k_BHKD, v_BHKD, k_tail_RHMD, v_tail_RHMD)]
    share, indexed, index, mask = 1, EVERY_SLOT, None, None
    if index_RHN is not None:
        share, indexed = (group if index_RHN.dim() == 4 else 1), index_RHN.shape[-1]
        index = index_RHN.int().reshape(rows, heads * share, indexed).contiguous()
    if mask_HGK is not None:
        mask = mask_HGK.reshape(1, heads * share, group // share * k_BHKD.shape[2]).contiguous()
    layout = (rows, heads, share, group // share, dim, k_BHKD.shape[2], int(tail), indexed)
    places = [number for x in (*stored, index, mask) for number in _where(x)]
    out, lse = torch.empty_like(q), torch.empty(rows, heads, group)
    fields = (ctypes.c_int64 * (len(layout) + len(places)))(*layout, *places)
    call = build.function(SOURCE, "kvbench_sparse_decode_rows", "ppppfii")
    code = call(
        q.data_ptr(), out.data_ptr(), lse.data_ptr(), ctypes.addressof(fields), scaling,
        CODES[q.dtype], CODES[k_BHKD.dtype],
    )  # fmt: skip
    assert code == 0, f"sparse_decode: code {code}"
    return out, lse


def _where(x_BHX: Tensor | None) -> tuple[int, int, int]:
    """Address, and bytes from row to row and from head to head; B = 1 when the rows share it."""
    if x_BHX is None:
        return 0, 0, 0
    size = x_BHX.element_size()
    row = x_BHX.stride(0) * size if x_BHX.shape[0] > 1 else 0
    return x_BHX.data_ptr(), row, x_BHX.stride(1) * size
