"""Quest's upper bound of the attention logit of a page, and the pages that it chooses."""

import torch
from torch import Tensor

from kvbench.kernels import forms
from kvbench.kernels.quest_scores import cpu
from kvbench.kernels.top_k import select_tokens

#: raised when the numbers of any form change
VERSION = 1


def form(device: torch.device, dtype: torch.dtype) -> str:
    """The form that runs; see `forms.choose`."""
    return forms.choose(device, dtype, cpu.available)


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


def quest_select(
    q_RHGD: Tensor, low_RHPD: Tensor, high_RHPD: Tensor, page: int, length: Tensor, pages: int, per_query_head: bool
) -> Tensor:  # fmt: skip
    """Slots of the pages with the highest bounds, the page of the newest token always among them.

    Args:
        q_RHGD: queries, and the bounds as for `quest_scores`; pages without keys are never chosen.
        low_RHPD: minima.
        high_RHPD: maxima.
        page: tokens per page.
        length: slots in use, an integer tensor of one element.
        pages: pages to choose.
        per_query_head: every query head chooses its own pages; otherwise bounds are summed over the group.

    Returns:
        int32 `[R, H, pages * page]`, or `[R, H, G, pages * page]` per query head, ascending; -1 for what is not in use.
    """
    where = low_RHPD.device, low_RHPD.dtype
    if form(*where) == "compiled":
        module = forms.dispatch(__name__, form, *where)
        return module.quest_select(q_RHGD, low_RHPD, high_RHPD, page, length, pages, per_query_head)
    scores = quest_scores(q_RHGD, low_RHPD, high_RHPD)
    if not per_query_head:
        scores = scores.sum(2)
    newest = (length - 1) // page
    scores = scores.masked_fill(torch.arange(scores.shape[-1], device=scores.device) == newest, torch.inf)
    chosen = select_tokens(scores, pages, 1, newest + 1)
    slots = (chosen[..., None] * page + torch.arange(page, device=chosen.device)).flatten(-2)
    return torch.where((slots >= 0) & (slots < length), slots, -1).int()
