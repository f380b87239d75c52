"""Whether a model attends as the engine assumes, found by running it on a few tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvbench.config.errors import UserError
from kvbench.config.text import one_line
from kvbench.engine.prefill import PrefillLayer

#: tokens of two passes, as of a prefill and a decode step
PASSES = (3, 1)


class ProbeLayer(PrefillLayer):
    """One layer that counts its passes and refuses keys and values that no method can take."""

    def __init__(self, number: int, kind: str) -> None:
        super().__init__(sum(PASSES), 1, "sdpa")
        self.number, self.kind = number, kind
        self.updates = self.passes = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if key_states.dim() != 4 or key_states.shape != value_states.shape:
            keys, values = list(key_states.shape), list(value_states.shape)
            raise self.refusal(
                f"caches keys of shape {keys} and values of shape {values}; allowed: equal ones of 4 axes"
            )
        self.updates += 1
        if self.updates > len(PASSES):
            raise self.refusal("caches more than one set of keys and values")
        return super().update(key_states, value_states, *args, **kwargs)

    def attend(self, q_BQTD: Tensor, scaling: float, padding_BT: Tensor | None = None) -> Tensor:
        assert self.keys is not None
        self.passes += 1
        if self.passes != self.updates:
            raise self.refusal("shares its keys and values with another layer")
        if q_BQTD.shape[1] % self.keys.shape[1] or q_BQTD.shape[3] != self.keys.shape[3]:
            raise self.refusal(
                f"has queries of shape {list(q_BQTD.shape)} and keys of shape {list(self.keys.shape)}"
            )
        return super().attend(q_BQTD, scaling)

    def refusal(self, what: str) -> UserError:
        """An error that names the model's type and the layer."""
        return UserError(f"model: attention of '{self.kind}' is not supported: layer {self.number} {what}")


@torch.inference_mode()
def check_model(model: PreTrainedModel) -> None:
    """Check that every layer attends causally through the attention hook, over keys and values of its own.

    Args:
        model: loaded with the attention hook.

    Raises:
        UserError: it does not; the message names the model's type, the layer and what is not supported.
    """
    config: Any = model.config.get_text_config()
    kind = model.config.model_type
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(f"model: '{kind}' is an encoder-decoder, which kvbench does not support")
    if getattr(config, "attention_chunk_size", None) is not None:
        raise UserError("model: attends within chunks of the text, which kvbench does not support")
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int):
        raise UserError(f"model: attention of '{kind}' is not supported: its config has no num_hidden_layers")
    layers = [ProbeLayer(number, kind) for number in range(count)]
    cache = Cache(layers=list(layers))
    try:
        for tokens in PASSES:
            ids = torch.ones(1, tokens, dtype=torch.long, device=model.device)
            model(input_ids=ids, past_key_values=cache, use_cache=True)
    except UserError:
        raise
    # the model's code is not ours: whatever it does with a cache that is no tensor ends here
    except Exception as error:
        begun = [layer for layer in layers if layer.updates]
        last = (begun or layers)[-1] if layers else None
        if last is None:
            raise UserError(f"model: '{kind}' has no layers") from error
        raise last.refusal(
            f"does not attend through transformers' interface ({one_line(error, 120)})"
        ) from error
    for layer in layers:
        if layer.passes != len(PASSES):
            raise layer.refusal("does not attend through the cache")
