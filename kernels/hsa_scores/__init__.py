"""Hybrid sparse attention (RocketKV's second stage): the probability of each page."""

import torch
from torch import Tensor

from kvbench.kernels.top_k import top_k


def hsa_scores(q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor) -> Tensor:
    """Mean over the group of the probability of one token of each page.

    Top channels of the group-summed |q|, the earlier one of equals (16-bit queries do tie); the page's maximum where
    the group-summed q is positive, else its minimum; per query head a softmax over tokens with SparQ's temperature
    sqrt(D * |q[chosen]|_1 / |q|_1). The softmax over tokens is taken page-wise, with ln(tokens in the page) added to
    the logit, and divided by the tokens again. Only the chosen channels are read.
    Source: RocketKV, arXiv 2502.14051v3, Algorithm 1.

    Args:
        q_RHGD: queries `[R, H, G, D]`.
        bounds_RHEP: channel-major page bounds `[R, H, 2 D, P]`, minima before maxima; `[R, H, D, P]` (the keys
            themselves) for pages of one token.
        channels: channels used for scoring, 1..D.
        page: tokens per page.
        length: tokens in the cache, a 0-dim integer tensor; pages beyond get 0.

    Returns:
        `[R, H, P]` fp32: the probability of each single token of the page, averaged over the group.
    """
    rows, heads, group, dim = q_RHGD.shape
    edges, pages = bounds_RHEP.shape[2:]
    q = q_RHGD.float()
    chosen_RHC = top_k(q.abs().sum(2), channels)
    edge_RHC = chosen_RHC
    if edges > dim:
        edge_RHC = chosen_RHC + dim * (q.sum(2).gather(-1, chosen_RHC) > 0)
    first = torch.arange(rows * heads, device=q.device).view(rows, heads, 1) * edges
    bound_NP = bounds_RHEP.reshape(-1, pages).index_select(0, (edge_RHC + first).flatten())
    q_RHGC = q.gather(-1, chosen_RHC[:, :, None, :].expand(-1, -1, group, -1))
    logits_RHGP = q_RHGC @ bound_NP.view(rows, heads, channels, pages).float()
    temperature = (dim * q_RHGC.abs().sum(-1) / q.abs().sum(-1)).sqrt()
    tokens_P = (length - torch.arange(pages, device=q.device) * page).clamp(0, page)
    logits_RHGP = logits_RHGP / temperature[..., None] + tokens_P.float().log()
    logits_RHGP = logits_RHGP.masked_fill(tokens_P == 0, -torch.inf)
    return (logits_RHGP.softmax(-1) / tokens_P.clamp(min=1)).mean(2)
