"""Quest's upper bound of the attention logit of a page."""

from torch import Tensor


def quest_scores(q_RHGD: Tensor, low_RHPD: Tensor, high_RHPD: Tensor) -> Tensor:
    """`sum_i max(q_i * high_i, q_i * low_i)` per query head and page, as two matrix products.

    max(q*h, q*l) is max(q, 0) * h + min(q, 0) * l because l <= h. Source: Quest, Tang et al. 2024, section 3.2.
    Bounds of pages that hold no key yet (+inf, -inf) must be masked by the caller: they give NaN or +-inf.

    Args:
        q_RHGD: queries `[R, H, G, D]`.
        low_RHPD: minima `[R, H, P, D]`.
        high_RHPD: maxima `[R, H, P, D]`.

    Returns:
        `[R, H, G, P]` fp32, not scaled.
    """
    up = q_RHGD.clamp(min=0) @ high_RHPD.transpose(-1, -2)
    down = q_RHGD.clamp(max=0) @ low_RHPD.transpose(-1, -2)
    return (up + down).float()
