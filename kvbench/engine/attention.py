"""The attention hook: a cache layer computes the attention over its own keys and values.

transformers calls `Cache.update` with the new keys and values and hands what it returns to the attention
function. Our caches return the layer itself, and the attention function calls its `attend`. Both the attention
and the mask function must be registered: without the latter, transformers silently builds no mask.
"""

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from kvbench.config.errors import UserError

NAME = "kvbench"


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
    module: nn.Module, query: Tensor, key: Any, value: Any, attention_mask: Any, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    if not hasattr(key, "attend"):
        raise UserError(
            "past_key_values: attn_implementation 'kvbench' needs a cache of kvbench; it was not given, or the model's"
            " generate put another in its place, as some do where their rotary frequencies change"
        )
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise UserError(f"model: its attention uses '{name}', which kvbench does not support")
    if attention_mask is not None:
        return key.attend(query, scaling, attention_mask), None
    return key.attend(query, scaling), None


def _padding(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The padding alone: cache layers handle causality and the rest of the mask."""
    return attention_mask
