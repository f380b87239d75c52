"""The Triton form: radix selection, one program per row, in one launch without synchronisation with the host."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _order(Scores, at, mask):
    """uint32 keys in the order of the scores, which are fp32."""
    # + 0: minus zero ties with zero
    # NaN ranks first, so that what it came from is read and seen: a GPU makes it with a positive sign
    bits = (tl.load(Scores + at, mask=mask, other=0.0).to(tl.float32) + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def take_highest(scores, length, out, pages, page, wanted, BLOCK: tl.constexpr):
    """The tokens of the pages of highest score, ascending; a page that does not fit gives its first tokens.

    The length may be more than the pages hold, or none.
    """
    length = tl.minimum(tl.maximum(length, 0), pages * page)
    used = tl.cdiv(length, page)
    room = tl.minimum(wanted, length)
    last = _order(scores, used - 1, used > 0)
    missing = used * page - length
    digit = tl.arange(0, 256)
    need = room
    prefix = tl.zeros([], tl.uint32)
    for step in tl.static_range(4):
        count = tl.zeros([256], tl.int32)
        for start in range(0, used, BLOCK):
            p = start + tl.arange(0, BLOCK)
            key = _order(scores, p, p < used)
            match = p < used
            if step > 0:
                match = match & ((key >> (32 - 8 * step)) == prefix)
            count += tl.histogram(((key >> (24 - 8 * step)) & 0xFF).to(tl.int32), 256, mask=match)
        tokens = count * page
        partial = digit == ((last >> (24 - 8 * step)) & 0xFF).to(tl.int32)
        if step > 0:
            partial = partial & ((last >> (32 - 8 * step)) == prefix)
        tokens -= tl.where(partial, missing, 0)
        # tokens in this digit or a higher one, which falls from digit to digit
        at_least = tl.sum(tokens, 0) - tl.cumsum(tokens, 0) + tokens
        found = tl.maximum(tl.sum((at_least >= need).to(tl.int32), 0) - 1, 0)
        need -= tl.sum(tl.where(digit > found, tokens, 0), 0)
        prefix = (prefix << 8) | found.to(tl.uint32)

    taken = tl.zeros([], tl.int32)
    for start in range(0, used, BLOCK):
        p = start + tl.arange(0, BLOCK)
        key = _order(scores, p, p < used)
        held = tl.where(p < used, tl.minimum(page, length - p * page), 0)
        tied = tl.where(key == prefix, held, 0)
        left = need - (tl.cumsum(tied, 0) - tied)
        give = tl.where(key > prefix, held, tl.minimum(tied, tl.maximum(left, 0)))
        first = taken + tl.cumsum(give, 0) - give
        for n in range(0, page):
            tl.store(out + first + n, (p * page + n).to(out.dtype.element_ty), mask=n < give)
        taken += tl.sum(give, 0)
        need = tl.maximum(need - tl.sum(tied, 0), 0)
    for start in range(room, wanted, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(out + at, tl.full([BLOCK], -1, out.dtype.element_ty), mask=at < wanted)


@triton.jit
def top_k_select(Scores, Length, Out, pages, page, wanted, BLOCK: tl.constexpr):
    """Selects in one row of scores."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(Length).to(tl.int32)
    take_highest(Scores + row * pages, length, Out + row * wanted, pages, page, wanted, BLOCK)


def select_tokens(scores_XP: Tensor, tokens: int, page: int, length: Tensor) -> Tensor:
    """Slots of the pages of highest score; see `kernels.top_k.select_tokens`."""
    return _select(scores_XP, tokens, page, length, torch.int32)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Positions of the k highest scores; see `kernels.top_k.top_k`."""
    length = torch.full((1,), scores.shape[-1], device=scores.device)
    return _select(scores, min(k, scores.shape[-1]), 1, length, torch.int64)


def _select(scores_XP: Tensor, tokens: int, page: int, length: Tensor, dtype: torch.dtype) -> Tensor:
    scores = scores_XP.contiguous()
    out = torch.empty(*scores.shape[:-1], tokens, dtype=dtype, device=scores.device)
    if out.numel():
        rows = out.numel() // tokens
        top_k_select[(rows,)](scores, length, out, scores.shape[-1], page, tokens, BLOCK=BLOCK, num_warps=8)
    return out
