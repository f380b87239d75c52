"""Hybrid sparse attention (RocketKV's second stage): the probability of each page, and the logits behind it."""

import torch
from torch import Tensor

from kvbench.kernels import forms
from kvbench.kernels.hsa_scores import cpu
from kvbench.kernels.top_k import select_tokens

#: raised when the numbers of any form change
VERSION = 1


def form(device: torch.device, dtype: torch.dtype) -> str:
    """The form that runs; see `forms.choose`."""
    return forms.choose(device, dtype, cpu.available)


def logits_form(device: torch.device, dtype: torch.dtype) -> str:
    """The form of `channel_logits`, which has no compiled one."""
    return forms.choose(device, dtype)


def hsa_scores(q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor) -> Tensor:
    """Mean over the group of the probability of one token of each page.

    Uses the top channels of the group-summed |q|, the earlier one of equals (16-bit queries do tie); in each the page's
    maximum where the group-summed q is positive, else its minimum; per query head a softmax over tokens with SparQ's
    temperature sqrt(D * |q[chosen]|_1 / |q|_1), or logits of 0 where q[chosen] is 0. The softmax is taken page-wise,
    with ln(tokens in the page) added to the logit, and divided by the tokens again. Only the chosen channels are read.
    Source: RocketKV, arXiv 2502.14051v3, Algorithm 1.

    Args:
        q_RHGD: queries `[R, H, G, D]`.
        bounds_RHEP: channel-major page bounds `[R, H, 2 D, P]`, minima before maxima; `[R, H, D, P]` (the keys
            themselves) for pages of one token; contiguous.
        channels: channels used for scoring, 1..D.
        page: tokens per page.
        length: tokens in the cache, an integer tensor of one element; pages beyond it get 0.

    Returns:
        `[R, H, P]` fp32: probability of each token of the page, averaged over the group.
    """
    assert 1 <= channels <= q_RHGD.shape[-1]
    module = forms.dispatch(__name__, form, bounds_RHEP.device, bounds_RHEP.dtype)
    return module.hsa_scores(q_RHGD, bounds_RHEP, channels, page, length)


def hsa_select(
    q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor, tokens: int
) -> Tensor:
    """Slots of the most probable pages, up to `tokens` tokens.

    The same as `top_k.select_tokens` of `hsa_scores`; on a GPU three launches, four for long rows; one call of the
    compiled form.

    Args:
        q_RHGD: queries, and the further arguments as for `hsa_scores`.
        bounds_RHEP: page bounds.
        channels: channels used for scoring.
        page: tokens per page.
        length: slots to choose from, an integer tensor of one element.
        tokens: slots to select.

    Returns:
        int32 `[R, H, tokens]`, ascending; padded with -1 if there are fewer.
    """
    assert 1 <= channels <= q_RHGD.shape[-1]
    where = bounds_RHEP.device, bounds_RHEP.dtype
    if form(*where) in ("compiled", "triton"):
        module = forms.dispatch(__name__, form, *where)
        return module.hsa_select(q_RHGD, bounds_RHEP, channels, page, length, tokens)
    scores_RHP = hsa_scores(q_RHGD, bounds_RHEP, channels, page, length)
    return select_tokens(scores_RHP, tokens, page, length)


def channel_logits(q_RHGD: Tensor, keys_RHDT: Tensor, channels: int, length: Tensor) -> Tensor:
    """Attention logits estimated from the top channels of the group-summed |q|, as SparQ does.

    The same as the logits behind `hsa_scores` for pages of one token: `q[chosen] k[chosen]` over the temperature
    sqrt(D * |q[chosen]|_1 / |q|_1). Source: SparQ, arXiv 2312.04985, section 4.

    Args:
        q_RHGD: queries `[R, H, G, D]`.
        keys_RHDT: channel-major keys `[R, H, D, T]`, contiguous.
        channels: channels read, 1..D.
        length: tokens in the cache, an integer tensor of one element.

    Returns:
        `[R, H, G, T]` fp32; undefined from `length` on.
    """
    where = keys_RHDT.device, keys_RHDT.dtype
    module = forms.dispatch(__name__, logits_form, *where, part="channel_logits")
    return module.channel_logits(q_RHGD, keys_RHDT, channels, length)
