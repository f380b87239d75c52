"""Quest's bound by definition: the exact, slow reference."""

import torch
from torch import Tensor


def quest_scores(q_RHGD: Tensor, low_RHPD: Tensor, high_RHPD: Tensor) -> Tensor:
    """`sum_i max(q_i * high_i, q_i * low_i)` in fp64: `[R, H, G, P]`.

    Source: Quest, Tang et al. 2024, section 3.2.
    """
    q = q_RHGD.double().unsqueeze(3)
    low, high = (x.double().unsqueeze(2) for x in (low_RHPD, high_RHPD))
    return torch.maximum(q * low, q * high).sum(-1)
