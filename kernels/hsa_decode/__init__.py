"""A decode step of hybrid sparse attention, from the query to the output."""

from torch import Tensor

from kvbench.kernels.hsa_scores import hsa_select
from kvbench.kernels.sparse_decode import sparse_decode


def hsa_decode(
    q_RHGD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, k_tail_RHMD: Tensor, v_tail_RHMD: Tensor, tail: Tensor,
    bounds_RHEP: Tensor, channels: int, page: int, tokens: int, scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Scores pages, selects tokens and attends to them: one step of RocketKV's second stage.

    On a GPU this takes five launches: channels, logits of all pages, softmax with the selection (two launches for long
    rows), attention, and the merge of its pieces, which is left out if there is only one.

    Args:
        q_RHGD: queries; the tensors are those of `sparse_decode`.
        k_BHKD: prefix keys.
        v_BHKD: prefix values.
        k_tail_RHMD: appended keys.
        v_tail_RHMD: appended values.
        tail: number of appended tokens.
        bounds_RHEP: page bounds of prefix and tail, as for `hsa_scores`.
        channels: channels used for scoring.
        page: tokens per page.
        tokens: slots read.
        scaling: factor on the logits.

    Returns:
        Output `[R, H, G, D]`, log-sum-exp `[R, H, G]` fp32 and the slots read, int32 `[R, H, tokens]`.
    """
    index = hsa_select(q_RHGD, bounds_RHEP, channels, page, tail + k_BHKD.shape[2], tokens)
    out, lse = sparse_decode(q_RHGD, k_BHKD, v_BHKD, k_tail_RHMD, v_tail_RHMD, tail, scaling, index)
    return out, lse, index
