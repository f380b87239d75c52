"""Which forms run on a device, for people and for records."""

import torch

from kvbench.kernels import (
    attention_sum,
    hsa_scores,
    page_bounds,
    pool,
    quantise_kv,
    quest_scores,
    sparse_decode,
    top_k,
    window_scores,
)

#: operations that have a compiled form
COMPILED = ("sparse_decode", "window_scores", "pool", "hsa_scores", "top_k")


def forms_for(device: torch.device, dtype: torch.dtype, group: int, head_dim: int) -> dict[str, str]:
    """The form of every operation for a model; compiles what is not compiled yet.

    Args:
        device: where the model is.
        dtype: of its keys.
        group: query heads per KV head.
        head_dim: channels of a head.
    """
    rules = {
        "window_scores": window_scores.form,
        "pool": pool.form,
        "hsa_scores": hsa_scores.form,
        "top_k": top_k.form,
        "page_bounds": page_bounds.form,
        "quest_scores": quest_scores.form,
        "attention_sum": attention_sum.form,
        "quantise_kv": quantise_kv.form,
    }
    return {
        "sparse_decode": sparse_decode.form(device, dtype, group, head_dim),
        **{operation: rule(device, dtype) for operation, rule in rules.items()},
    }


def label(forms: dict[str, str]) -> str:
    """Short name of a set of forms for records: that of the attention, and where others differ, theirs.

    What has no compiled form is not told to be portable beside compiled ones.
    """
    main = forms["sparse_decode"]
    others = COMPILED if "compiled" in forms.values() else tuple(forms)
    apart = [f"{operation} {forms[operation]}" for operation in others if forms[operation] != main]
    return ", ".join([main, *apart])
