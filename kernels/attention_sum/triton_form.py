"""The Triton form: a window of all queries."""

from torch import Tensor

from kvbench.kernels.window_scores import triton_form


def attention_sum(q_QTD: Tensor, k_HTD: Tensor, scaling: float) -> Tensor:
    """Causal softmax attention per key; see `kernels.attention_sum.attention_sum`."""
    return triton_form.window_scores(q_QTD, k_HTD, scaling)
