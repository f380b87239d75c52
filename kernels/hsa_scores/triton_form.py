"""The Triton form: three launches; of the bounds only the chosen channels are read, once for the whole group."""

import torch
import triton
import triton.language as tl
from torch import Tensor

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
    # a channel's rank is the number of channels before it: larger, or as large and earlier
    mine, other = tl.expand_dims(size, 1), tl.expand_dims(size, 0)
    before = (other > mine) | ((other == mine) & (d[None, :] < d[:, None]))
    rank = tl.sum(before.to(tl.int32), 1)
    chosen = (rank < channels) & (d < D)
    edge = d + tl.where((tl.sum(q, 0) > 0) & (edges > D), D, 0)
    whole = tl.where(g < G, tl.sum(tl.abs(q), 1), 1.0)
    temperature = tl.sqrt(D * tl.sum(tl.where(chosen[None, :], tl.abs(q), 0.0), 1) / whole)
    temperature = tl.where(g < G, temperature, 1.0)
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
def hsa_probabilities(
    Logits, Lse, Length, Out, page, pages, blocks,
    G: tl.constexpr, GP: tl.constexpr, PAGES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Probability of one token of each page, averaged over the group."""
    job = tl.program_id(0).to(tl.int64)
    g, b = tl.arange(0, GP), tl.arange(0, BLOCKS)
    p = tl.program_id(1) * PAGES + tl.arange(0, PAGES)
    part = tl.load(
        Lse + (job * G + g)[:, None] * blocks + b[None, :],
        mask=(g < G)[:, None] & (b < blocks)[None, :], other=float("-inf"),
    )  # fmt: skip
    top = tl.max(part, 1)
    base = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.sum(tl.exp(part - base[:, None]), 1)
    lse = base + tl.log(tl.where(mass > 0, mass, 1.0))
    some = (p * page < tl.load(Length).to(tl.int32)) & (p < pages)
    inside = (g < G)[:, None] & some[None, :]
    logits = tl.load(Logits + (job * G + g)[:, None] * pages + p[None, :], mask=inside, other=float("-inf"))
    mean = tl.sum(tl.where(inside, tl.exp(logits - lse[:, None]), 0.0), 0) / G
    tl.store(Out + job * pages + p, mean, mask=p < pages)


def hsa_scores(q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor) -> Tensor:
    """Mean over the group of the probability of one token of each page; see `kernels.hsa_scores.hsa_scores`.

    Three launches, no synchronisation with the host. Reads `ceil(length / page) * channels` bounds per row and KV
    head; among equal channel sums the earlier channel is chosen.

    Args:
        q_RHGD: queries `[R, H, G, D]`.
        bounds_RHEP: channel-major page bounds `[R, H, 2 D, P]` or, for pages of one token, keys `[R, H, D, P]`;
            contiguous.
        channels: channels used for scoring, 1..D.
        page: tokens per page.
        length: tokens in the cache, an integer tensor of one element, read on the device.

    Returns:
        `[R, H, P]` fp32.
    """
    rows, heads, group, dim = q_RHGD.shape
    edges, pages = bounds_RHEP.shape[2:]
    assert bounds_RHEP.is_contiguous()
    q, jobs = q_RHGD.contiguous(), rows * heads
    blocks = triton.cdiv(pages, PAGES)
    edge = q.new_empty(jobs, channels, dtype=torch.int32)
    weight = q.new_empty(jobs, group, channels, dtype=torch.float32)
    logits = q.new_empty(jobs, group, pages, dtype=torch.float32)
    lse = q.new_empty(jobs, group, blocks, dtype=torch.float32)
    out = q.new_empty(rows, heads, pages, dtype=torch.float32)
    of_group = {"G": group, "GP": triton.next_power_of_2(group)}
    hsa_channels[(jobs,)](q, edge, weight, channels, edges, **of_group, D=dim, DP=triton.next_power_of_2(dim))
    hsa_logits[(jobs, blocks)](
        bounds_RHEP, edge, weight, length, logits, lse, channels, edges, page, pages,
        **of_group, PAGES=PAGES, CHANNELS=CHANNELS,
    )  # fmt: skip
    hsa_probabilities[(jobs, blocks)](
        logits, lse, length, out, page, pages, blocks,
        **of_group, PAGES=PAGES, BLOCKS=triton.next_power_of_2(blocks),
    )  # fmt: skip
    return out
