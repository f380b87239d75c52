"""Quest's upper bound of the attention logit of a page."""

import torch
from torch import Tensor

from kvbench.kernels import forms

#: raised when the numbers of any form change
VERSION = 1


def form(device: torch.device, dtype: torch.dtype) -> str:
    """The form that runs; see `forms.choose`."""
    return forms.choose(device, dtype)


def quest_scores(q_RHGD: Tensor, low_RHPD: Tensor, high_RHPD: Tensor) -> Tensor:
    """`sum_i max(q_i * high_i, q_i * low_i)` per query head and page.

    The caller must mask pages without keys: their bounds (+inf, -inf) give NaN or +-inf.
    Source: Quest, Tang et al. 2024, section 3.2.

    Args:
        q_RHGD: queries `[R, H, G, D]`, in the dtype of the bounds.
        low_RHPD: minima `[R, H, P, D]`.
        high_RHPD: maxima `[R, H, P, D]`.

    Returns:
        `[R, H, G, P]` fp32, not scaled.
    """
    module = forms.dispatch(__name__, form, low_RHPD.device, low_RHPD.dtype)
    return module.quest_scores(q_RHGD, low_RHPD, high_RHPD).float()
