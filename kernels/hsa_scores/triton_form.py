"""The Triton form: of the bounds only the chosen channels are read, once for the whole group."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvbench.kernels.top_k.triton_form import BLOCK, WARPS, list_highest, lists, merge, split, take_highest

PAGES, CHANNELS = 128, 16


@triton.jit
def hsa_channels(
    Q, Edge, Weight, channels, edges,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """The channels of one row and KV head, as rows of its bounds, and the queries there over their temperature."""
    job = tl.program_id(0).to(tl.int64)
    g, d = tl.arange(0, GP), tl.arange(0, DP)
    inside = (g < G)[:, None] & (d < D)[None, :]
    q = tl.load(Q + (job * G + g)[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    size = tl.where(d < D, tl.sum(tl.abs(q), 0), -1.0)
    # NaN has no rank, and every rank is an address
    size = tl.where(size == size, size, float("inf"))
    # a channel's rank is the number of channels before it: larger, or as large and earlier
    mine, other = tl.expand_dims(size, 1), tl.expand_dims(size, 0)
    before = (other > mine) | ((other == mine) & (d[None, :] < d[:, None]))
    rank = tl.sum(before.to(tl.int32), 1)
    chosen = (rank < channels) & (d < D)
    edge = d + tl.where((tl.sum(q, 0) > 0) & (edges > D), D, 0)
    part = tl.sum(tl.where(chosen[None, :], tl.abs(q), 0.0), 1)
    some = part > 0
    temperature = tl.where(some, tl.sqrt(D * part / tl.where(some, tl.sum(tl.abs(q), 1), 1.0)), 1.0)
    tl.store(Edge + job * channels + rank, edge, mask=chosen)
    tl.store(
        Weight + (job * G + g)[:, None] * channels + rank[None, :], q / temperature[:, None],
        mask=inside & chosen[None, :],
    )  # fmt: skip


@triton.jit
def hsa_logits(
    Bounds, Edge, Weight, Length, Logits, Lse, channels, edges, page, pages,
    G: tl.constexpr, GP: tl.constexpr, PAGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Logits of some pages for the group, and their log-sum-exp over tokens."""
    job, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g = tl.arange(0, GP)
    p = block * PAGES + tl.arange(0, PAGES)
    tokens = tl.minimum(tl.maximum(tl.load(Length).to(tl.int32) - p * page, 0), page)
    some = (tokens > 0) & (p < pages)
    logits = tl.zeros([GP, PAGES], tl.float32)
    for start in range(0, channels, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        edge = tl.load(Edge + job * channels + c, mask=c < channels, other=0).to(tl.int64)
        bound = tl.load(
            Bounds + (job * edges + edge)[:, None] * pages + p[None, :],
            mask=(c < channels)[:, None] & some[None, :], other=0.0,
        ).to(tl.float32)  # fmt: skip
        weight = tl.load(
            Weight + (job * G + g)[:, None] * channels + c[None, :],
            mask=(g < G)[:, None] & (c < channels)[None, :], other=0.0,
        )  # fmt: skip
        logits += tl.sum(weight[:, :, None] * bound[None, :, :], 1)
    tl.store(
        Logits + (job * G + g)[:, None] * pages + p[None, :], logits, mask=(g < G)[:, None] & some[None, :]
    )
    by_token = tl.where(
        some[None, :], logits + tl.log(tl.maximum(tokens, 1).to(tl.float32))[None, :], float("-inf")
    )
    top = tl.max(by_token, 1)
    mass = tl.sum(tl.exp(by_token - tl.where(top == float("-inf"), 0.0, top)[:, None]), 1)
    lse = tl.where(mass > 0, top + tl.log(tl.where(mass > 0, mass, 1.0)), float("-inf"))
    tl.store(Lse + (job * G + g) * tl.num_programs(1) + block, lse, mask=g < G)


@triton.jit
def _whole_lse(Lse, job, blocks, G: tl.constexpr, GP: tl.constexpr, BLOCKS: tl.constexpr):
    """Log-sum-exp of a group's query heads over all pages."""
    g, b = tl.arange(0, GP), tl.arange(0, BLOCKS)
    part = tl.load(
        Lse + (job * G + g)[:, None] * blocks + b[None, :],
        mask=(g < G)[:, None] & (b < blocks)[None, :], other=float("-inf"),
    )  # fmt: skip
    top = tl.max(part, 1)
    base = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.sum(tl.exp(part - base[:, None]), 1)
    return base + tl.log(tl.where(mass > 0, mass, 1.0))


@triton.jit
def _mean(Logits, job, p, pages, some, lse, G: tl.constexpr, GP: tl.constexpr):
    """Probability of one token of each page, averaged over the group."""
    g = tl.arange(0, GP)
    inside = (g < G)[:, None] & some[None, :]
    logits = tl.load(Logits + (job * G + g)[:, None] * pages + p[None, :], mask=inside, other=float("-inf"))
    return tl.sum(tl.where(inside, tl.exp(logits - lse[:, None]), 0.0), 0) / G


@triton.jit
def _means(
    Logits, Lse, Scores, job, first, end, pages, blocks,
    G: tl.constexpr, GP: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Stores the probabilities of the pages from `first` to `end`, for all threads of the program to read."""
    lse = _whole_lse(Lse, job, blocks, G, GP, BLOCKS)
    for start in range(first, end, BLOCK):
        p = start + tl.arange(0, BLOCK)
        tl.store(Scores + p, _mean(Logits, job, p, pages, p < end, lse, G, GP), mask=p < end)
    tl.debug_barrier()


@triton.jit
def hsa_probabilities(
    Logits, Lse, Length, Out, page, pages, blocks,
    G: tl.constexpr, GP: tl.constexpr, PAGES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Probabilities of some pages."""
    job = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * PAGES + tl.arange(0, PAGES)
    lse = _whole_lse(Lse, job, blocks, G, GP, BLOCKS)
    some = (p * page < tl.load(Length).to(tl.int32)) & (p < pages)
    tl.store(Out + job * pages + p, _mean(Logits, job, p, pages, some, lse, G, GP), mask=p < pages)


@triton.jit
def hsa_choose(
    Logits, Lse, Scores, Length, Out, page, pages, blocks, wanted,
    G: tl.constexpr, GP: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The tokens of one row's and KV head's most probable pages."""
    job = tl.program_id(0).to(tl.int64)
    length = tl.load(Length).to(tl.int32)
    scores = Scores + job * pages
    _means(
        Logits,
        Lse,
        scores,
        job,
        0,
        tl.minimum(tl.cdiv(length, page), pages),
        pages,
        blocks,
        G,
        GP,
        BLOCKS,
        BLOCK,
    )
    take_highest(scores, None, 0, length, Out + job * wanted, pages, page, wanted, BLOCK)


@triton.jit
def hsa_choose_chunks(
    Logits, Lse, Scores, Length, Listed, Listed_scores, page, pages, blocks, wanted, chunk, width,
    G: tl.constexpr, GP: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Lists the pages that one chunk of a row's and KV head's pages can give."""
    job, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(Length).to(tl.int32)
    first = part * chunk
    end = tl.minimum(first + chunk, pages)
    scores = Scores + job * pages
    _means(
        Logits,
        Lse,
        scores,
        job,
        first,
        tl.minimum(tl.cdiv(length, page), end),
        pages,
        blocks,
        G,
        GP,
        BLOCKS,
        BLOCK,
    )
    to = (job * tl.num_programs(1) + part) * width
    list_highest(
        scores + first, length - first * page, Listed + to, Listed_scores + to, first, end - first, page, wanted,
        width, BLOCK,
    )  # fmt: skip


def hsa_scores(q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor) -> Tensor:
    """Mean over the group of the probability of one token of each page; see `kernels.hsa_scores.hsa_scores`.

    Three launches, no synchronisation with the host. Reads `ceil(length / page) * channels` bounds per row and KV head.
    """
    logits, lse = _logits(q_RHGD, bounds_RHEP, channels, page, length)
    rows, heads, group, pages = logits.shape
    out = logits.new_empty(rows, heads, pages)
    hsa_probabilities[(rows * heads, lse.shape[-1])](
        logits, lse, length, out, page, pages, lse.shape[-1],
        G=group, GP=triton.next_power_of_2(group), PAGES=PAGES, BLOCKS=triton.next_power_of_2(lse.shape[-1]),
    )  # fmt: skip
    return out


def hsa_select(
    q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor, tokens: int
) -> Tensor:
    """Slots of the most probable pages; see `kernels.hsa_scores.hsa_select`.

    Three launches, four where the pages of a row are shared among programs.
    """
    logits, lse = _logits(q_RHGD, bounds_RHEP, channels, page, length)
    rows, heads, group, pages = logits.shape
    scores = logits.new_empty(rows, heads, pages)
    out = logits.new_empty(rows, heads, tokens, dtype=torch.int32)
    jobs, chunk, width = rows * heads, *split(pages, tokens, page)
    blocks = lse.shape[-1]
    sizes = {"G": group, "GP": triton.next_power_of_2(group), "BLOCKS": triton.next_power_of_2(blocks)}
    if chunk == pages:
        hsa_choose[(jobs,)](
            logits,
            lse,
            scores,
            length,
            out,
            page,
            pages,
            blocks,
            tokens,
            **sizes,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
        return out
    parts = triton.cdiv(pages, chunk)
    listed, listed_scores = lists(logits, jobs, parts * width)
    hsa_choose_chunks[(jobs, parts)](
        logits, lse, scores, length, listed, listed_scores, page, pages, blocks, tokens, chunk, width,
        **sizes, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    merge(listed, listed_scores, length, out, pages, page)
    return out


def channel_logits(q_RHGD: Tensor, keys_RHDT: Tensor, channels: int, length: Tensor) -> Tensor:
    """Logits from the top channels; see `kernels.hsa_scores.channel_logits`. Two launches."""
    return _logits(q_RHGD, keys_RHDT, channels, 1, length)[0]


def _logits(
    q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits `[R, H, G, P]` and their log-sum-exp per block of pages, fp32. Two launches."""
    rows, heads, group, dim = q_RHGD.shape
    edges, pages = bounds_RHEP.shape[2:]
    assert bounds_RHEP.is_contiguous()
    q, jobs, blocks = q_RHGD.contiguous(), rows * heads, triton.cdiv(pages, PAGES)
    edge = q.new_empty(jobs, channels, dtype=torch.int32)
    weight = q.new_empty(jobs, group, channels, dtype=torch.float32)
    logits = q.new_empty(rows, heads, group, pages, dtype=torch.float32)
    lse = q.new_empty(rows, heads, group, blocks, dtype=torch.float32)
    of_group = {"G": group, "GP": triton.next_power_of_2(group)}
    # each program of the second could rank the channels itself, but then takes twice the registers or spills, and
    # the compiler gives up loads of 16 bytes
    hsa_channels[(jobs,)](q, edge, weight, channels, edges, **of_group, D=dim, DP=triton.next_power_of_2(dim))
    hsa_logits[(jobs, blocks)](
        bounds_RHEP, edge, weight, length, logits, lse, channels, edges, page, pages,
        **of_group, PAGES=PAGES, CHANNELS=CHANNELS,
    )  # fmt: skip
    return logits, lse
