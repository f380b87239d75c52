"""The Triton form: radix selection without synchronisation with the host, over many programs where a row is long."""

import torch
import triton
import triton.language as tl
from torch import Tensor

#: pages that a program looks at together; with twice as many its registers leave room for one program
BLOCK = 2048
WARPS = 8


@triton.jit
def _order(Scores, at, mask):
    """uint32 keys in the order of the scores, which are fp32."""
    # + 0: minus zero ties with zero
    # NaN ranks first, so that what it came from is read and seen: a GPU makes it with a positive sign
    bits = (tl.load(Scores + at, mask=mask, other=0.0).to(tl.float32) + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _entries(Scores, Pages, n, entries, length, page):
    """Page, key and number of tokens of some entries of a list; without a list of pages, entry n is page n."""
    some = n < entries
    p = n
    if Pages is not None:
        p = tl.load(Pages + n, mask=some, other=-1)
        some = some & (p >= 0)
    held = tl.where(some, tl.minimum(page, tl.maximum(length - p * page, 0)), 0)
    return p, _order(Scores, n, some), held


@triton.jit
def _threshold(Scores, Pages, entries, length, page, room, BLOCK: tl.constexpr):
    """The key of the last page that gives tokens, and how many the pages of that key give together."""
    digit = tl.arange(0, 256)
    need = room
    prefix = tl.zeros([], tl.uint32)
    # one page at most holds fewer tokens than the others
    partial_key = tl.zeros([], tl.uint32)
    partial_held = tl.zeros([], tl.int32)
    for step in tl.static_range(4):
        count = tl.zeros([256], tl.int32)
        for start in range(0, entries, BLOCK):
            _, key, held = _entries(Scores, Pages, start + tl.arange(0, BLOCK), entries, length, page)
            match = held == page
            if step == 0:
                partial = (held > 0) & (held < page)
                partial_key += tl.sum(tl.where(partial, key, 0), 0)
                partial_held += tl.sum(tl.where(partial, held, 0), 0)
            else:
                match = match & ((key >> (32 - 8 * step)) == prefix)
            count += tl.histogram(((key >> (24 - 8 * step)) & 0xFF).to(tl.int32), 256, mask=match)
        tokens = count * page
        there = digit == ((partial_key >> (24 - 8 * step)) & 0xFF).to(tl.int32)
        if step > 0:
            there = there & ((partial_key >> (32 - 8 * step)) == prefix)
        tokens += tl.where(there, partial_held, 0)
        # tokens in this digit or a higher one, which falls from digit to digit
        at_least = tl.sum(tokens, 0) - tl.cumsum(tokens, 0) + tokens
        found = tl.maximum(tl.sum((at_least >= need).to(tl.int32), 0) - 1, 0)
        need -= tl.sum(tl.where(digit > found, tokens, 0), 0)
        prefix = (prefix << 8) | found.to(tl.uint32)
    return prefix, need


@triton.jit
def _given(key, held, prefix, need):
    """Tokens that each entry gives, and what the entries behind must still give at the threshold."""
    tied = tl.where(key == prefix, held, 0)
    left = need - (tl.cumsum(tied, 0) - tied)
    give = tl.where(key > prefix, held, tl.minimum(tied, tl.maximum(left, 0)))
    return give, tl.maximum(need - tl.sum(tied, 0), 0)


@triton.jit
def list_highest(
    Scores, length, Listed, Listed_scores, first, pages, page, wanted, width, BLOCK: tl.constexpr
):
    """The pages of a chunk that can be among the row's highest, ascending, with their scores; -1 behind them.

    Args:
        Scores: of the chunk.
        length: tokens of the row from the chunk's first page on; it may be more than the chunk holds, or none.
        first: the chunk's first page.
        pages: pages of the chunk.
        width: entries of the list.
    """
    length = tl.minimum(tl.maximum(length, 0), pages * page)
    used = tl.cdiv(length, page)
    prefix, need = _threshold(Scores, None, used, length, page, tl.minimum(wanted, length), BLOCK)
    taken = tl.zeros([], tl.int32)
    for start in range(0, used, BLOCK):
        n = start + tl.arange(0, BLOCK)
        _, key, held = _entries(Scores, None, n, used, length, page)
        give, need = _given(key, held, prefix, need)
        some = (give > 0).to(tl.int32)
        to = taken + tl.cumsum(some, 0) - some
        tl.store(Listed + to, first + n, mask=give > 0)
        tl.store(Listed_scores + to, tl.load(Scores + n, mask=n < used).to(tl.float32), mask=give > 0)
        taken += tl.sum(some, 0)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(Listed + at, tl.full([BLOCK], -1, tl.int32), mask=(at >= taken) & (at < width))


@triton.jit
def take_highest(Scores, Pages, entries, length, out, pages, page, wanted, BLOCK: tl.constexpr):
    """The tokens of the pages of highest score, ascending; a page that does not fit gives its first tokens.

    Args:
        Scores: of the entries.
        Pages: the entries' pages, ascending, -1 for none; without it, all pages.
        entries: number of entries, where pages are listed.
        length: may be more than the pages hold, or none.
    """
    length = tl.minimum(tl.maximum(length, 0), pages * page)
    if Pages is None:
        entries = tl.cdiv(length, page)
    room = tl.minimum(wanted, length)
    prefix, need = _threshold(Scores, Pages, entries, length, page, room, BLOCK)
    taken = tl.zeros([], tl.int32)
    for start in range(0, entries, BLOCK):
        p, key, held = _entries(Scores, Pages, start + tl.arange(0, BLOCK), entries, length, page)
        give, need = _given(key, held, prefix, need)
        first = taken + tl.cumsum(give, 0) - give
        for n in range(0, page):
            tl.store(out + first + n, (p * page + n).to(out.dtype.element_ty), mask=n < give)
        taken += tl.sum(give, 0)
    for start in range(room, wanted, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(out + at, tl.full([BLOCK], -1, out.dtype.element_ty), mask=at < wanted)


@triton.jit
def top_k_select(Scores, Length, Out, pages, page, wanted, BLOCK: tl.constexpr):
    """Selects in one row of scores."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(Length).to(tl.int32)
    take_highest(Scores + row * pages, None, 0, length, Out + row * wanted, pages, page, wanted, BLOCK)


@triton.jit
def top_k_chunks(
    Scores, Length, Listed, Listed_scores, pages, page, wanted, chunk, width, BLOCK: tl.constexpr
):
    """Lists what one chunk of a row can give."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = part * chunk
    to = (row * tl.num_programs(1) + part) * width
    list_highest(
        Scores + row * pages + first, tl.load(Length).to(tl.int32) - first * page, Listed + to,
        Listed_scores + to, first, tl.minimum(chunk, pages - first), page, wanted, width, BLOCK,
    )  # fmt: skip


@triton.jit
def top_k_merge(Listed, Listed_scores, Length, Out, pages, page, wanted, entries, BLOCK: tl.constexpr):
    """Selects in the lists of one row's chunks."""
    row = tl.program_id(0).to(tl.int64)
    take_highest(
        Listed_scores + row * entries, Listed + row * entries, entries, tl.load(Length).to(tl.int32),
        Out + row * wanted, pages, page, wanted, BLOCK,
    )  # fmt: skip


def select_tokens(scores_XP: Tensor, tokens: int, page: int, length: Tensor) -> Tensor:
    """Slots of the pages of highest score; see `kernels.top_k.select_tokens`."""
    return _select(scores_XP, tokens, page, length, torch.int32)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Positions of the k highest scores; see `kernels.top_k.top_k`."""
    length = torch.full((1,), scores.shape[-1], device=scores.device)
    return _select(scores, min(k, scores.shape[-1]), 1, length, torch.int64)


def _select(scores_XP: Tensor, tokens: int, page: int, length: Tensor, dtype: torch.dtype) -> Tensor:
    scores = scores_XP.contiguous()
    pages = scores.shape[-1]
    out = torch.empty(*scores.shape[:-1], tokens, dtype=dtype, device=scores.device)
    if not out.numel():
        return out
    rows = out.numel() // tokens
    chunk, width = split(pages, tokens, page)
    if chunk == pages:
        top_k_select[(rows,)](scores, length, out, pages, page, tokens, BLOCK=BLOCK, num_warps=WARPS)
        return out
    listed, listed_scores = lists(scores, rows, triton.cdiv(pages, chunk) * width)
    top_k_chunks[(rows, triton.cdiv(pages, chunk))](
        scores, length, listed, listed_scores, pages, page, tokens, chunk, width, BLOCK=BLOCK, num_warps=WARPS
    )
    merge(listed, listed_scores, length, out, pages, page)
    return out


def split(pages: int, tokens: int, page: int) -> tuple[int, int]:
    """Pages of a program of the first launch, and entries of the list that it leaves to the second one.

    A program of the second launch walks the lists of a row, so that long chunks make the first launch longer and
    short ones the second. Where two launches do not halve what has to be walked one after the other, as when a row is
    short or most of it is selected, one does all, with all pages in its chunk.

    Args:
        pages: of a row.
        tokens: slots to select.
        page: tokens per page.
    """
    # all pages that give tokens are full, but for the row's last one and the one that is cut
    most = triton.cdiv(tokens, page) + 1
    alone = triton.cdiv(pages, BLOCK)

    def walked(chunk: int) -> int:
        return chunk // BLOCK + triton.cdiv(triton.cdiv(pages, chunk) * min(most, chunk), BLOCK)

    best = min((BLOCK << n for n in range((alone - 1).bit_length())), key=walked, default=pages)
    if 2 * walked(best) > alone:
        best = pages
    return best, min(most, best)


def lists(like: Tensor, rows: int, entries: int) -> tuple[Tensor, Tensor]:
    """Room for listed pages and their scores."""
    listed = like.new_empty(rows, entries, dtype=torch.int32)
    return listed, like.new_empty(rows, entries, dtype=torch.float32)


def merge(listed: Tensor, listed_scores: Tensor, length: Tensor, out: Tensor, pages: int, page: int) -> None:
    """Selects in the lists of every row; the second launch."""
    rows, entries = listed.shape
    top_k_merge[(rows,)](
        listed, listed_scores, length, out, pages, page, out.shape[-1], entries, BLOCK=BLOCK, num_warps=WARPS
    )
