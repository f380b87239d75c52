"""RocketKV's page probabilities: the token-expanded form, slow and literal."""

import torch
from torch import Tensor


def hsa_scores(q_GD: Tensor, k_TD: Tensor, page: int, channels: int) -> Tensor:
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
    q, k = q_GD.double(), k_TD.double()
    group, dim = q.shape
    chosen = q.abs().sum(0).sort(descending=True, stable=True).indices[:channels]
    positive = q.sum(0) > 0
    token_scores = torch.empty(group, len(k), dtype=torch.float64)
    for start in range(0, len(k), page):
        run = k[start : start + page]
        representative = torch.where(positive, run.amax(0), run.amin(0))
        token_scores[:, start : start + page] = (q[:, chosen] @ representative[chosen])[:, None]
    temperature = (dim * q[:, chosen].abs().sum(1) / q.abs().sum(1)).sqrt()
    return (token_scores / temperature[:, None]).softmax(-1).mean(0)
