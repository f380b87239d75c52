"""The attention hook: a cache layer computes the attention over its own keys and values.

transformers calls `Cache.update` with the new keys and values and hands what it returns to the attention
function. Our caches return the layer itself, and the attention function calls its `attend`. Both the attention
and the mask function must be registered: without the latter, transformers silently builds no mask.

Cache layers attend causally. What a model asks for beyond that is refused, here for every pass; `check_model` in
`engine/supported.py` sees before the first one what never comes here.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from kvbench.config.errors import UserError

NAME = "kvbench"
#: keywords of the attention function that do not change what it computes here: the mask function knows the window, and
#: the others are about training, other outputs, or what happened before
KNOWN = frozenset({
    "sliding_window", "position_ids", "cache_position", "use_cache", "num_items_in_batch", "output_hidden_states",
    "output_router_logits", "return_dict", "is_causal", "logits_to_keep", "past_key_values", "layer_idx",
    "deterministic",
})  # fmt: skip
#: attribute of a mask that says what is wrong with it
FAULT = "kvbench_fault"
#: elements of a mask that are compared at once
BLOCK = 2**24


class Attends(Protocol):
    """A cache layer that computes the attention over its own keys and values."""

    def attend(self, q_BQTD: Tensor, scaling: float) -> Tensor:
        """Output `[B, T, Q, D]` for queries `[B, Q, T, D]` of the tokens appended last.

        A layer that supports padded batches gets the mask `[B, T]` of the prompt's real tokens as a third
        argument.
        """
        ...


def register_attention() -> str:
    """Register the hook with transformers and return its name; repeated calls are harmless."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _padding)
    return NAME


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if not hasattr(key, "attend"):
        raise UserError(
            "past_key_values: attn_implementation 'kvbench' needs a cache of kvbench; it was not given, or the model's"
            " generate put another in its place, as some do where their rotary frequencies change"
        )
    _check_keywords(module, kwargs)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if attention_mask is None:
        causal = kwargs.get("is_causal")
        if query.shape[2] > 1 and not (getattr(module, "is_causal", True) if causal is None else causal):
            raise unsupported(module, "is not causal (is_causal=false)")
        return key.attend(query, scaling), None
    if attention_mask.dim() != 2:
        own = f"has a mask of shape {list(attention_mask.shape)}, of its own or given as attention_mask"
        raise unsupported(module, getattr(attention_mask, FAULT, own + "; allowed: padding [batch, tokens]"))
    return key.attend(query, scaling, attention_mask), None


def unsupported(module: nn.Module, what: str) -> UserError:
    """An error that names the type of a model and the layer that does `what`."""
    config: Any = getattr(module, "config", None)
    kind, layer = getattr(config, "model_type", "unknown"), getattr(module, "layer_idx", None)
    place = "a layer" if layer is None else f"layer {layer}"
    return UserError(f"model: attention of '{kind}' is not supported: {place} {what}")


def _check_keywords(module: nn.Module, keywords: dict[str, Any]) -> None:
    """Refuse what would change the attention, known or not.

    Raises:
        UserError: such a keyword has a value.
    """
    for name, value in keywords.items():
        if value is None or value is False or name in KNOWN:
            continue
        if name == "dropout" and (value == 0 or not module.training):
            continue
        raise unsupported(module, f"uses '{name}'")


def _padding(
    *args: Any, q_length: int, kv_length: int, mask_function: Callable[..., Tensor], q_offset: Any = 0,
    attention_mask: Tensor | None = None, device: Any = None, config: Any = None, **kwargs: Any,
) -> Tensor | None:  # fmt: skip
    """The padding alone: cache layers handle causality. A mask that is more than that is returned, for `_attention`.

    It is no error before a layer uses it: some models make masks for layers that they do not have.
    """
    if mask_function is not causal_mask_function:
        wrong = _beyond_causal(
            mask_function, range(int(q_offset), int(q_offset) + q_length), kv_length, device
        )
        if wrong is not None:
            return wrong
    return attention_mask


def _beyond_causal(
    mask_function: Callable[..., Tensor], rows: range, columns: int, device: Any
) -> Tensor | None:
    """A part `[1, 1, R, C]` of a mask in which a query does not see exactly the tokens up to its own; None if all do.

    Args:
        mask_function: of transformers: whether a query sees a key, by batch, head, query and key.
        rows: positions of the queries.
        columns: number of keys.
        device: where the mask is made.
    """
    at = torch.arange(columns, device=device)
    if len(rows) == 1:
        # a decode step, which must not wait for the device: the ends of its row tell
        device, at = "cpu", torch.tensor([0, columns - 1])
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    step = max(1, BLOCK // columns)
    for low in range(rows.start, rows.stop, step):
        queries = torch.arange(low, min(low + step, rows.stop), device=device)[:, None]
        expected = at <= queries
        seen = mask_function(zero, zero, queries[None, None], at[None, None, None]).expand(
            1, 1, *expected.shape
        )
        if not torch.equal(seen[0, 0], expected):
            what = f"attends within a sliding window or chunk, below the text's {columns} tokens; give a shorter one"
            if bool((seen[0, 0] & ~expected).any()):
                what = "sees tokens after a query's own, as bidirectional attention does"
            setattr(seen, FAULT, what)
            return seen
    return None
