"""Observation-window attention, the score behind SnapKV, ChunkKV, PyramidKV and RocketKV's first stage."""

import torch
from torch import Tensor


def window_scores(q_QWD: Tensor, k_HTD: Tensor, scaling: float) -> Tensor:
    """Softmax attention of the last W queries to every key, causal inside the window, summed over the queries.

    One KV head at a time, so that the scratch is `[G * W, T]` and not `[Q, W, T]`.

    Args:
        q_QWD: post-RoPE queries of the last W positions `[Q, W, D]`, Q a multiple of H.
        k_HTD: post-RoPE keys `[H, T, D]`, T >= W.
        scaling: factor on the logits.

    Returns:
        `[Q, T]` fp32; each row sums to W. Source: SnapKV, Li et al. 2024, section 3.
    """
    heads, length, dim = k_HTD.shape
    queries, window, _ = q_QWD.shape
    group = queries // heads
    out_HGT = torch.empty(heads, group, length, dtype=torch.float32, device=k_HTD.device)
    future = torch.ones(window, window, dtype=torch.bool, device=k_HTD.device).triu(1)
    for head in range(heads):
        # in fp32 from the product on: bf16 logits tie, and a tie keeps the earlier token
        q_RD = q_QWD[head * group : (head + 1) * group].reshape(group * window, dim).float()
        logits_GWT = (q_RD @ k_HTD[head].float().T).mul_(scaling).view(group, window, length)
        logits_GWT[..., length - window :].masked_fill_(future, -torch.inf)
        torch.sum(logits_GWT.softmax(dim=-1), dim=1, out=out_HGT[head])
    return out_HGT.view(queries, length)


def pool(scores: Tensor, kernel: int, kind: str) -> Tensor:
    """One-dimensional pooling along the last dimension with stride 1 and the same length.

    Args:
        scores: `[..., T]`.
        kernel: odd width; 1 leaves the scores alone.
        kind: "max", or "avg" (zeros beyond the ends are counted, as in the official SnapKV).

    Returns:
        `[..., T]`.
    """
    if kernel == 1 or scores.shape[-1] == 0:
        return scores
    flat = scores.reshape(-1, 1, scores.shape[-1])
    function = torch.nn.functional.max_pool1d if kind == "max" else torch.nn.functional.avg_pool1d
    return function(flat, kernel, stride=1, padding=kernel // 2).view(scores.shape)
