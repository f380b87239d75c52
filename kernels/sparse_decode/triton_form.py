"""The Triton form: flash-decoding over slots, one program per piece of a KV head's slots and all its query heads."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvbench.kernels.dtypes import dot_precision, rows_of
from kvbench.kernels.sparse_decode import FP8

#: slots that a program holds at a time, by the size of their numbers; decoding codes takes registers, as fp32 does
BLOCK = {1: 32, 2: 64, 4: 16}
#: slots of the smallest piece; a second piece costs a second launch
PIECE = 128
#: pieces of one KV head; 8 KV heads then fill the largest GPU several times over
MAX_SPLITS = 64
#: fp8 codes, kept as bytes
CODES = {None: 0, "e4m3": 1, "e5m2": 2}


@triton.jit
def fp8_number(x, CODE: tl.constexpr):
    """The number of a byte; e4m3 has 8 less of exponent bias than fp16, e5m2 is the upper half of one."""
    if CODE == 1:
        wide = x.to(tl.uint16)
        bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
        x = bits.to(tl.float16, bitcast=True) * 256.0
    elif CODE == 2:
        x = (x.to(tl.uint16) << 8).to(tl.float16, bitcast=True)
    return x


@triton.jit
def slot_numbers(Prefix, Late, early, at, d, mask):
    """Numbers at `at + d` of the prefix, or of the tail where a slot is not early."""
    if tl.target_info.is_hip():
        # the AMD compiler cannot select between two pointers to less than 2 GB (TritonAMDGPUCanonicalizePointers)
        prefix = tl.load(Prefix + at + d, mask=mask & early, other=0)
        late = tl.load(Late + at + d, mask=mask & (early == 0), other=0)
        x = tl.where(early, prefix, late)
    else:
        x = tl.load(tl.where(early, Prefix + at, Late + at) + d, mask=mask, other=0)
    return x


@triton.jit
def sparse_decode_pieces(
    Q, K, V, K_tail, V_tail, Tail, Used, Index, Mask, K_scale, V_scale, Out, Lse, kept, listed, scaling,
    k_scale_head, v_scale_head,
    k_row, k_head, v_row, v_head, k_tail_row, k_tail_head, v_tail_row, v_tail_head,
    HEADS: tl.constexpr, SHARE: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, CODE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of `G` query heads over one piece of their slots: normalised output and log-sum-exp."""
    job = tl.program_id(0)
    split = tl.program_id(1)
    row = (job // (HEADS * SHARE)).to(tl.int64)
    head = job // SHARE % HEADS
    slots = kept + tl.load(Tail).to(tl.int32)
    total = slots
    if Index is not None:
        total = listed
    piece = tl.cdiv(tl.cdiv(total, SPLITS), BLOCK) * BLOCK
    low = split * piece
    high = tl.minimum(low + piece, total)

    g = tl.arange(0, GP)
    d = tl.arange(0, DP)
    in_group, in_dim = g < G, d < D
    q = tl.load(
        Q + (job * G + g)[:, None] * D + d[None, :], mask=in_group[:, None] & in_dim[None, :], other=0.0
    )
    log2_scale = scaling * 1.4426950408889634
    if K_scale is not None:
        log2_scale *= tl.load(K_scale + head * k_scale_head)
    k_prefix = K + row * k_row + head.to(tl.int64) * k_head
    v_prefix = V + row * v_row + head.to(tl.int64) * v_head
    k_late = K_tail + row * k_tail_row + head.to(tl.int64) * k_tail_head
    v_late = V_tail + row * v_tail_row + head.to(tl.int64) * v_tail_head
    peak = tl.full([GP], float("-inf"), tl.float32)
    mass = tl.zeros([GP], tl.float32)
    partial = tl.zeros([GP, DP], tl.float32)

    for start in range(low, high, BLOCK):
        place = start + tl.arange(0, BLOCK)
        slot = place
        if Index is not None:
            slot = tl.load(Index + job.to(tl.int64) * listed + place, mask=place < high, other=-1)
        early = slot < kept
        valid = (place < high) & (slot >= 0) & (slot < slots)
        if Used is not None:
            valid = valid & ((slot < tl.load(Used + row * HEADS + head)) | (slot >= kept))
        at = tl.where(early, slot, slot - kept).to(tl.int64) * D
        k = slot_numbers(
            k_prefix, k_late, early[None, :], at[None, :], d[:, None], valid[None, :] & in_dim[:, None]
        )
        logits = tl.dot(q, fp8_number(k, CODE).to(q.dtype), input_precision=PRECISION)
        seen = valid[None, :]
        if Mask is not None:
            member = tl.load(
                Mask + (job % (HEADS * SHARE) * G + g).to(tl.int64)[:, None] * kept + slot[None, :],
                mask=in_group[:, None] & (valid & early)[None, :], other=1,
            )  # fmt: skip
            seen = seen & (member != 0)
        # infinities become NaN: minus infinity would read as a slot that is not read
        logits = tl.where(seen, logits + logits * 0, float("-inf"))
        top = tl.maximum(peak, tl.max(logits, 1))
        # a head that has seen no slot yet would subtract infinities
        base = tl.where(top == float("-inf"), 0.0, top)
        # scaled after the subtraction, which is exact for the logits that matter
        weights = tl.exp2((logits - base[:, None]) * log2_scale)
        rescale = tl.exp2((peak - base) * log2_scale)
        v = slot_numbers(
            v_prefix, v_late, early[:, None], at[:, None], d[None, :], valid[:, None] & in_dim[None, :]
        )
        mass = mass * rescale + tl.sum(weights, 1)
        partial = tl.dot(
            weights.to(q.dtype),
            fp8_number(v, CODE).to(q.dtype),
            partial * rescale[:, None],
            input_precision=PRECISION,
        )
        peak = top

    some = mass != 0
    out = partial / tl.where(some, mass, 1.0)[:, None]
    if V_scale is not None:
        out *= tl.load(V_scale + head * v_scale_head)
    lse = tl.where(
        some, (peak * log2_scale + tl.log2(tl.where(some, mass, 1.0))) * 0.6931471805599453, float("-inf")
    )
    to = (job * G + g) * SPLITS + split
    tl.store(
        Out + to.to(tl.int64)[:, None] * D + d[None, :], out.to(Out.dtype.element_ty),
        mask=in_group[:, None] & in_dim[None, :],
    )  # fmt: skip
    tl.store(Lse + to, lse, mask=in_group)


@triton.jit
def sparse_decode_merge(
    Pieces, Piece_lse, Out, Lse,
    D: tl.constexpr, DP: tl.constexpr, SPLITS: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """The pieces of one query head, weighted by their log-sum-exp."""
    head = tl.program_id(0).to(tl.int64)
    s, d = tl.arange(0, SP), tl.arange(0, DP)
    lse = tl.load(Piece_lse + head * SPLITS + s, mask=s < SPLITS, other=float("-inf"))
    top = tl.max(lse, 0)
    weights = tl.exp(lse - tl.where(top == float("-inf"), 0.0, top))
    # an empty piece holds zeros and need not be read
    pieces = tl.load(
        Pieces + (head * SPLITS + s)[:, None] * D + d[None, :],
        mask=(weights != 0)[:, None] & (d < D)[None, :], other=0.0,
    )  # fmt: skip
    total = tl.sum(weights, 0)
    some = total != 0
    out = tl.sum(pieces * weights[:, None], 0) / tl.where(some, total, 1.0)
    tl.store(Out + head * D + d, out.to(Out.dtype.element_ty), mask=d < D)
    tl.store(Lse + head, tl.where(some, top + tl.log(tl.where(some, total, 1.0)), float("-inf")))


def splits(capacity: int) -> int:
    """Pieces of a KV head's slots; they depend on room, not on neighbours, so neither do a row's numbers.

    A power of two: the kernels are compiled for the number, and AdaKV and PyramidKV have as many lengths as heads or
    layers.
    """
    most = min(MAX_SPLITS, max(1, triton.cdiv(capacity, PIECE)))
    return 1 << (most.bit_length() - 1)


def sparse_decode(
    q_RHGD: Tensor,
    k_BHKD: Tensor,
    v_BHKD: Tensor,
    k_tail_RHMD: Tensor,
    v_tail_RHMD: Tensor,
    tail: Tensor,
    scaling: float,
    index_RHN: Tensor | None = None,
    mask_HGK: Tensor | None = None,
    *,
    used_RH: Tensor | None = None,
    fp8: FP8 | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode attention of R rows that share one layout; see `kernels.sparse_decode.sparse_decode`.

    Two launches (one where the slots make a single piece), no synchronisation with the host. A group is read once,
    by one program; with an index per query head each query head is a program of its own.

    Args:
        used_RH: int32 prefix slots that hold a token, where rows and KV heads differ; all K when None.
        fp8: given where keys and values are fp8 codes, which are decoded in registers.
    """
    rows, heads, group, dim = q_RHGD.shape
    kept, room = k_BHKD.shape[2], k_tail_RHMD.shape[2]
    k_BHKD, v_BHKD, k_tail_RHMD, v_tail_RHMD = map(rows_of, (k_BHKD, v_BHKD, k_tail_RHMD, v_tail_RHMD))
    assert k_BHKD.dtype == (q_RHGD.dtype if fp8 is None else torch.uint8)
    share = group if index_RHN is not None and index_RHN.dim() == 4 else 1
    count = index_RHN.shape[-1] if index_RHN is not None else kept + room
    parts = splits(count)
    q = q_RHGD.contiguous()
    out, lse = torch.empty_like(q), q.new_empty(rows, heads, group, dtype=torch.float32)
    pieces, piece_lse = out, lse
    if parts > 1:
        pieces = q.new_empty(rows * heads * group, parts, dim, dtype=torch.float32)
        piece_lse = q.new_empty(rows * heads * group, parts, dtype=torch.float32)
    padded = max(16, triton.next_power_of_2(dim))
    sparse_decode_pieces[(rows * heads * share, parts)](
        q, k_BHKD, v_BHKD, k_tail_RHMD, v_tail_RHMD, tail, used_RH,
        index_RHN.int().contiguous() if index_RHN is not None else None,
        mask_HGK.contiguous().view(torch.uint8) if mask_HGK is not None else None,
        fp8.k_scale if fp8 else None, fp8.v_scale if fp8 else None, pieces, piece_lse, kept, count, scaling,
        int(fp8 is not None and fp8.k_scale.numel() > 1), int(fp8 is not None and fp8.v_scale.numel() > 1),
        *_row_and_head(k_BHKD), *_row_and_head(v_BHKD), *_row_and_head(k_tail_RHMD), *_row_and_head(v_tail_RHMD),
        HEADS=heads, SHARE=share, G=group // share, GP=max(16, triton.next_power_of_2(group // share)),
        D=dim, DP=padded, BLOCK=BLOCK[k_BHKD.element_size()], SPLITS=parts, CODE=CODES[fp8.code if fp8 else None],
        PRECISION=dot_precision(q.dtype), num_warps=4, num_stages=1 if torch.version.hip else 2,
    )  # fmt: skip
    if parts > 1:
        sparse_decode_merge[(rows * heads * group,)](
            pieces,
            piece_lse,
            out,
            lse,
            D=dim,
            DP=padded,
            SPLITS=parts,
            SP=triton.next_power_of_2(parts),
            num_warps=8,
        )
    return out, lse


def _row_and_head(x: Tensor) -> tuple[int, int]:
    """Strides of rows and KV heads; 0 for rows that share a prefix."""
    return (x.stride(0) if x.shape[0] > 1 else 0), x.stride(1)
