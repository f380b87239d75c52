"""Grouped-query decode attention over selected slots: the exact, slow reference."""

import torch
from torch import Tensor


def of_head(
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
    weights_GN = torch.exp(logits_GN - lse_G[:, None])
    if mask_GN is not None:
        weights_GN = weights_GN.masked_fill(~mask_GN.any(-1, keepdim=True), 0.0)
    return weights_GN @ v_ND.double(), lse_G


def sparse_decode(
    q_RHGD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, k_tail_RHMD: Tensor, v_tail_RHMD: Tensor, tail: Tensor,
    scaling: float, index_RHN: Tensor | None = None, mask_HGK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Decode attention of R rows, query head by query head; see `kernels.sparse_decode.sparse_decode`."""
    rows, heads, group, _ = q_RHGD.shape
    kept = k_BHKD.shape[2]
    out, lse = torch.empty_like(q_RHGD), q_RHGD.new_empty(rows, heads, group, dtype=torch.float32)
    for row in range(rows):
        shared = row if k_BHKD.shape[0] > 1 else 0
        for head in range(heads):
            k, v = (
                torch.cat([prefix[shared, head], late[row, head, : int(tail)]])
                for prefix, late in ((k_BHKD, k_tail_RHMD), (v_BHKD, v_tail_RHMD))
            )
            for g in range(group):
                seen = torch.ones(len(k), dtype=torch.bool)
                if mask_HGK is not None:
                    seen[:kept] = mask_HGK[head, g]
                if index_RHN is not None:
                    slots = index_RHN[row, head, g] if index_RHN.dim() == 4 else index_RHN[row, head]
                    listed = torch.zeros(len(k), dtype=torch.bool)
                    listed[slots[(slots >= 0) & (slots < len(k))].long()] = True
                    seen &= listed
                out[row, head, g], lse[row, head, g] = (
                    x[0] for x in of_head(q_RHGD[row, head, g : g + 1], k, v, scaling, seen[None])
                )
    return out, lse
