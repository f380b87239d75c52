"""The torch form: static shapes and lengths that live on the device, so that a CUDA graph can hold it."""

import torch
from torch import Tensor


def sparse_decode(
    q_RHGD: Tensor,
    k_BHKD: Tensor,
    v_BHKD: Tensor,
    k_tail_RHMD: Tensor,
    v_tail_RHMD: Tensor,
    tail: Tensor,
    scaling: float,
    index_RHN: Tensor | None = None,
    mask_HGK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode attention of R rows that share one layout; see `kernels.sparse_decode.sparse_decode`."""
    if index_RHN is not None:
        return _gathered(q_RHGD, k_BHKD, v_BHKD, k_tail_RHMD, v_tail_RHMD, tail, scaling, index_RHN, mask_HGK)
    room = k_tail_RHMD.shape[2]
    prefix_RHGK = prefix_product(q_RHGD, k_BHKD.transpose(-1, -2)).float() * scaling
    tail_RHGM = torch.matmul(q_RHGD, k_tail_RHMD.transpose(-1, -2)).float() * scaling
    kept = k_BHKD.shape[2]
    late = torch.arange(room, device=tail.device) >= tail
    empty = late.all() if room else late.new_ones(())
    if mask_HGK is not None:
        prefix_RHGK = prefix_RHGK.masked_fill(~mask_HGK, -torch.inf)
        empty = empty & ~mask_HGK.any(-1, keepdim=True)
    elif kept:
        empty = late.new_zeros(())
    tail_RHGM = tail_RHGM.masked_fill(late, -torch.inf)
    scores = torch.cat([prefix_RHGK, tail_RHGM], dim=-1)
    lse = torch.logsumexp(scores, dim=-1)
    # only heads without slots: other NaN must be seen
    weights = scores.softmax(-1).masked_fill(empty, 0.0).to(q_RHGD.dtype)
    out = prefix_product(weights[..., :kept], v_BHKD) + torch.matmul(weights[..., kept:], v_tail_RHMD)
    return out, lse


def prefix_product(left_RHGX: Tensor, right_BHXY: Tensor) -> Tensor:
    """Matrix product `[R, H, G, Y]` with a right side that the rows may share (B = 1), which is then not copied."""
    if right_BHXY.shape[0] == left_RHGX.shape[0]:
        return left_RHGX @ right_BHXY
    rows, heads, group, _ = left_RHGX.shape
    merged = left_RHGX.transpose(0, 1).reshape(heads, rows * group, -1) @ right_BHXY[0]
    return merged.view(heads, rows, group, -1).transpose(0, 1)


def _gathered(
    q: Tensor, k: Tensor, v: Tensor, k_tail: Tensor, v_tail: Tensor, tail: Tensor, scaling: float, index: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    per_query_head = index.dim() == 4
    if not per_query_head:
        index = index.unsqueeze(2)
    rows, _, group, _ = q.shape
    kept = k.shape[2]
    valid = (index >= 0) & (index < kept + tail)
    if mask is not None:
        hidden = ~mask.unsqueeze(0).expand(rows, -1, -1, -1)
        inside = index.clamp(0, kept - 1).expand(-1, -1, group, -1).long()
        valid = valid & ~(hidden.gather(-1, inside) & (index < kept))
    k_sel, v_sel = (_take(prefix, end, index) for prefix, end in ((k, k_tail), (v, v_tail)))
    scores = (q.unsqueeze(3) @ k_sel.transpose(-1, -2)).squeeze(3).float() * scaling
    scores = scores.masked_fill(~valid, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = scores.softmax(-1).masked_fill(~valid.any(-1, keepdim=True), 0.0).to(q.dtype)
    return (weights.unsqueeze(3) @ v_sel).squeeze(3), lse


def _take(prefix_BHKD: Tensor, tail_RHMD: Tensor, index_RHgN: Tensor) -> Tensor:
    """Rows of prefix and tail by slot: `[R, H, g, N, D]`, g = 1 or G. Slots out of range give some row."""
    rows, heads, g, count = index_RHgN.shape
    kept, dim = prefix_BHKD.shape[2:]
    room = tail_RHMD.shape[2]
    flat = index_RHgN.reshape(rows, heads, g * count).long()
    head = torch.arange(heads, device=flat.device)[None, :, None]
    row = torch.arange(rows, device=flat.device)[:, None, None]
    owner = row if prefix_BHKD.shape[0] > 1 else torch.zeros_like(row)
    early = prefix_BHKD[owner, head, flat.clamp(0, kept - 1)]
    late = tail_RHMD[row, head, (flat - kept).clamp(0, room - 1)]
    taken = torch.where((flat < kept)[..., None], early, late)
    return taken.view(rows, heads, g, count, dim)
