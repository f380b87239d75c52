"""RocketKV's page probabilities: the token-expanded form, slow and literal."""

import torch
from torch import Tensor


def of_keys(q_GD: Tensor, k_TD: Tensor, page: int, channels: int) -> Tensor:
    """Probability of every token of one KV head under hybrid sparse attention, in fp64.

    RocketKV, arXiv 2502.14051v3, Algorithm 1, with the per-head temperature of SparQ that both official codes use.

    Args:
        q_GD: queries of the group `[G, D]`.
        k_TD: keys in cache order `[T, D]`.
        page: tokens per page.
        channels: channels used for scoring.

    Returns:
        `[T]` fp64: softmax over tokens per query head, averaged over the group.
    """
    runs = [k_TD[start : start + page] for start in range(0, len(k_TD), page)]
    low, high = (
        torch.cat([edge(run).expand(len(run), -1) for run in runs])
        for edge in (lambda run: run.amin(0), lambda run: run.amax(0))
    )
    return _logits(q_GD, low, high, channels).softmax(-1).mean(0)


def _logits(q_GD: Tensor, low_TD: Tensor, high_TD: Tensor, channels: int) -> Tensor:
    """Logits `[G, T]` from the bounds of each token's page."""
    q = q_GD.double()
    chosen = q.abs().sum(0).sort(descending=True, stable=True).indices[:channels]
    representative_TD = torch.where(q.sum(0) > 0, high_TD.double(), low_TD.double())
    part = q[:, chosen].abs().sum(1)
    temperature = torch.where(part > 0, (q.shape[1] * part / q.abs().sum(1)).sqrt(), 1.0)
    return q[:, chosen] @ representative_TD[:, chosen].T / temperature[:, None]


def hsa_scores(q_RHGD: Tensor, bounds_RHEP: Tensor, channels: int, page: int, length: Tensor) -> Tensor:
    """Probability of one token of each page, in fp64; see `kernels.hsa_scores.hsa_scores`."""
    rows, heads, _, dim = q_RHGD.shape
    pages = bounds_RHEP.shape[3]
    out = torch.zeros(rows, heads, pages, dtype=torch.float64)
    page_T = torch.arange(int(length)) // page
    for row in range(rows):
        for head in range(heads):
            bounds_TE = bounds_RHEP[row, head].T[page_T]
            by_token = _logits(q_RHGD[row, head], bounds_TE[:, :dim], bounds_TE[:, -dim:], channels)
            # tokens of a page have one probability
            out[row, head, page_T] = by_token.softmax(-1).mean(0)
    return out


def channel_logits(q_RHGD: Tensor, keys_RHDT: Tensor, channels: int, length: Tensor) -> Tensor:
    """Logits in fp64 from the top channels; see `kernels.hsa_scores.channel_logits`."""
    rows, heads = q_RHGD.shape[:2]
    keys_RHTD = keys_RHDT.transpose(-1, -2)
    logits = [
        _logits(q_RHGD[row, head], keys_RHTD[row, head], keys_RHTD[row, head], channels)
        for row in range(rows)
        for head in range(heads)
    ]
    return torch.stack(logits).unflatten(0, (rows, heads))
