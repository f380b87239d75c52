"""The torch form."""

import torch
from torch import Tensor


def window_scores(q_QWD: Tensor, k_HTD: Tensor, scaling: float) -> Tensor:
    """Softmax attention of the last W queries to every key; see `kernels.window_scores.window_scores`.

    One KV head at a time, so that the scratch is `[G * W, T]` and not `[Q, W, T]`.
    """
    heads, length, dim = k_HTD.shape
    queries, window, _ = q_QWD.shape
    group = queries // heads
    out_HGT = torch.empty(heads, group, length, dtype=torch.float32, device=k_HTD.device)
    future = torch.ones(window, window, dtype=torch.bool, device=k_HTD.device).triu(1)
    for head in range(heads):
        # fp32 products: bf16 logits would tie, and a tie keeps the earlier token
        q_RD = q_QWD[head * group : (head + 1) * group].reshape(group * window, dim).float()
        logits_GWT = (q_RD @ k_HTD[head].float().T).mul_(scaling).view(group, window, length)
        logits_GWT[..., length - window :].masked_fill_(future, -torch.inf)
        torch.sum(logits_GWT.softmax(dim=-1), dim=1, out=out_HGT[head])
    return out_HGT.view(queries, length)
