"""The torch form."""

from torch import Tensor


def quest_scores(q_RHGD: Tensor, low_RHPD: Tensor, high_RHPD: Tensor) -> Tensor:
    """Quest's bounds as two matrix products; see `kernels.quest_scores.quest_scores`.

    max(q*h, q*l) is max(q, 0) * h + min(q, 0) * l because l <= h. In fp32: products in bf16 tie.
    """
    q = q_RHGD.float()
    up = q.clamp(min=0) @ high_RHPD.float().transpose(-1, -2)
    down = q.clamp(max=0) @ low_RHPD.float().transpose(-1, -2)
    return up + down
