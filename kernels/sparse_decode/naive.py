"""Grouped-query decode attention over selected slots: the exact, slow reference."""

import torch
from torch import Tensor


def sparse_decode(
    q_GD: Tensor, k_ND: Tensor, v_ND: Tensor, scaling: float, mask_GN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of one group of query heads over the slots of their KV head, in fp64.

    Args:
        q_GD: post-RoPE queries of the group `[G, D]`.
        k_ND: keys `[N, D]`; a caller that selects passes the selected rows only.
        v_ND: values `[N, D]`.
        scaling: factor on the logits, usually `D ** -0.5`.
        mask_GN: True where a query head may read a slot `[G, N]`; all of them when None.

    Returns:
        The output `[G, D]` and the natural-log sum of exponentials `[G]`, both fp64. No slot: zeros and -inf.
    """
    logits_GN = q_GD.double() @ k_ND.double().T * scaling
    if mask_GN is not None:
        logits_GN = logits_GN.masked_fill(~mask_GN, -torch.inf)
    lse_G = torch.logsumexp(logits_GN, dim=-1)
    weights_GN = torch.exp(logits_GN - lse_G[:, None]).nan_to_num(0.0)
    return weights_GN @ v_ND.double(), lse_G
