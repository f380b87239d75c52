"""Ids of cells before they held the operations of a method: with a label of all operations' forms instead.

Frozen: it describes code of the past, so that a run begun with it resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from kvbench.kernels import forms
from kvbench.kernels.hsa_scores import cpu as hsa_scores
from kvbench.kernels.pool import cpu as pool
from kvbench.kernels.sparse_decode import cpu as sparse_decode
from kvbench.kernels.top_k import cpu as top_k
from kvbench.kernels.window_scores import cpu as window_scores

#: operations of one form
_PORTABLE = ("masked_attention", "rope", "top_k.top_k_mask")
#: operations without a compiled form; the label named the first four
_NOT_COMPILED = (
    "page_bounds", "quest_scores", "attention_sum", "quantise_kv", "pool.chunk_sums", "hsa_scores.channel_logits",
)  # fmt: skip


def forms_then(device: torch.device, dtype: torch.dtype, group: int, head_dim: int) -> dict[str, str]:
    """The form of every operation in that code, here and now.

    Args:
        device: where the model is.
        dtype: of its keys.
        group: query heads per KV head.
        head_dim: channels of a head.
    """
    compiled: dict[str, Callable[[], bool]] = {
        "sparse_decode": lambda: sparse_decode.available(group, head_dim),
        "window_scores": window_scores.available,
        "pool": pool.available,
        "hsa_scores": hsa_scores.available,
        "top_k": top_k.available,
    }
    return {
        **{name: forms.choose(device, dtype, available) for name, available in compiled.items()},
        **{name: forms.choose(device, dtype) for name in _NOT_COMPILED},
        **dict.fromkeys(_PORTABLE, "portable"),
    }


def label(then: Mapping[str, str]) -> str:
    """The label of `forms_then`, part of the ids; it left out operations without a compiled form next to others."""
    main = then["sparse_decode"]
    named = ["sparse_decode", "window_scores", "pool", "hsa_scores", "top_k"]
    if "compiled" not in then.values():
        named += _NOT_COMPILED[:4]
    return ", ".join([main, *(f"{name} {then[name]}" for name in named if then[name] != main)])


def same_computation(
    operations: Mapping[str, tuple[str, int]], called: Iterable[str], then: Mapping[str, str]
) -> bool:
    """Whether a cell computes what it did in that code.

    Args:
        operations: form and version of each operation that counts for the cell.
        called: those of them that the method or the engine calls.
        then: from `forms_then`.
    """
    first = all(version == 1 for _, version in operations.values())
    return first and all(operations[name][0] == then.get(name) for name in called)
