"""The torch form."""

import torch
from torch import Tensor

from kvbench.kernels.top_k import portable


def hsa_scores(q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor) -> Tensor:
    """Mean over the group of the probability of one token of each page; see `kernels.hsa_scores.hsa_scores`."""
    logits_RHGP = channel_logits(q_RHGD, bounds_RHEP, channels, length)
    tokens_P = (length - torch.arange(bounds_RHEP.shape[-1], device=length.device) * page).clamp(0, page)
    logits_RHGP = (logits_RHGP + tokens_P.float().log()).masked_fill(tokens_P == 0, -torch.inf)
    return (logits_RHGP.softmax(-1) / tokens_P.clamp(min=1)).mean(2)


def channel_logits(q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, length: Tensor) -> Tensor:
    """Logits from the top channels; see `kernels.hsa_scores.channel_logits`.

    Bounds may be keys `[R, H, D, P]`, or `[R, H, 2 D, P]` with minima before maxima.
    """
    rows, heads, group, dim = q_RHGD.shape
    edges, pages = bounds_RHEP.shape[2:]
    q = q_RHGD.float()
    chosen_RHC = portable.top_k(q.abs().sum(2), channels)
    edge_RHC = chosen_RHC
    if edges > dim:
        edge_RHC = chosen_RHC + dim * (q.sum(2).gather(-1, chosen_RHC) > 0)
    first = torch.arange(rows * heads, device=q.device).view(rows, heads, 1) * edges
    bound_NP = bounds_RHEP.reshape(-1, pages).index_select(0, (edge_RHC + first).flatten())
    q_RHGC = q.gather(-1, chosen_RHC[:, :, None, :].expand(-1, -1, group, -1))
    logits_RHGP = q_RHGC @ bound_NP.view(rows, heads, channels, pages).float()
    part_RHG = q_RHGC.abs().sum(-1)
    temperature = torch.where(part_RHG > 0, (dim * part_RHG / q.abs().sum(-1)).sqrt(), 1.0)
    return logits_RHGP / temperature[..., None]
