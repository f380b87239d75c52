"""Quest's bound as its definition says: the exact, slow reference."""

import torch
from torch import Tensor


def quest_scores(q_GD: Tensor, low_PD: Tensor, high_PD: Tensor) -> Tensor:
    """`sum_i max(q_i * high_i, q_i * low_i)` of one KV head, in fp64: `[G, P]`.

    Source: Quest, Tang et al. 2024, section 3.2.
    """
    q_G1D = q_GD.double()[:, None]
    return torch.maximum(q_G1D * low_PD.double(), q_G1D * high_PD.double()).sum(-1)
