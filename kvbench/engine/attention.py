"""The attention hook: a cache layer answers for the attention over what it holds.

transformers calls `Cache.update` with the new keys and values and hands what it returns to the attention
function. Our caches return the layer itself, and the attention function asks it to attend. Both the attention
and the mask function must be registered: without the latter transformers builds no mask and says nothing.
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

        A layer that takes padded batches gets the mask `[B, T]` of the prompt's real tokens as a third
        argument.
        """
        ...


def register_attention() -> str:
    """Makes the hook known to transformers under the name that is returned; may be called again."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _padding)
    return NAME


def _attention(
    module: nn.Module, query: Tensor, key: Any, value: Any, attention_mask: Any, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    if not hasattr(key, "attend"):
        raise TypeError("attn_implementation 'kvbench' needs a cache of kvbench as past_key_values")
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise UserError(f"model: its attention has '{name}', which kvbench's does not")
    if attention_mask is not None:
        return key.attend(query, scaling, attention_mask), None
    return key.attend(query, scaling), None


def _padding(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The padding alone: the cache layers know what each query may see of the rest."""
    return attention_mask
