"""A compressing cache for `model.generate` of transformers."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from kvbench.config.errors import UserError
from kvbench.config.typed import whole
from kvbench.engine.attention import NAME, register_attention
from kvbench.engine.batch import BatchCache, BatchLayer
from kvbench.engine.compress import cell_lanes
from kvbench.engine.finite import check_snapshot
from kvbench.engine.lanes import Lane
from kvbench.engine.prefill import PrefillLayer, check_window
from kvbench.engine.rope import check_rope, reset_rope, rope_of, rope_until
from kvbench.engine.stored import StoredLane
from kvbench.engine.supported import check_model
from kvbench.methods import Budget, Method, Shape, build
from kvbench.models.checkpoint import reading
from kvbench.models.load import FAMILIES


def cache(
    model: PreTrainedModel, method: str, *, tokens: int | None = None, ratio: float | str | None = None,
    max_new_tokens: int, **params: Any,
) -> DropInCache:  # fmt: skip
    """A cache that compresses a prompt with a method before the second token is generated.

    Switches the model to kvbench's attention, with a warning; `model.set_attn_implementation("sdpa")` switches
    it back. The first token comes from the dense prefill.

    Args:
        model: a causal language model.
        method: its name, see `kvbench ls methods`.
        tokens: budget in tokens, or
        ratio: as the fraction retained.
        max_new_tokens: maximum number of tokens that will be generated.
        **params: parameters of the method; `eviction`, `selection` and `format` as in a configuration.

    Raises:
        UserError: a name, parameter or budget that is not allowed.

    Example:
        `model.generate(**inputs, past_key_values=kvbench.cache(model, "rocketkv", tokens=512,
        max_new_tokens=128), max_new_tokens=128)`
    """
    built, max_new_tokens = build({"method": method, **params}), whole("max_new_tokens", max_new_tokens, 1)
    budget = None
    if tokens is not None or ratio is not None:
        budget = Budget(tokens=tokens, ratio=None if ratio is None else str(ratio))
    if "boundaries" in built.needs:
        raise UserError(f"method: {method} needs the text of the prompt, which a cache does not have")
    if "answer" in built.needs:
        raise UserError(f"method: {method} needs the answer in advance, which a cache does not have")
    if "repeat" in built.needs:
        raise UserError(f"method: {method} needs a second pass over the prompt, which a cache does not make")
    config = model.config.get_text_config()
    if "rope" in built.needs and config.model_type not in FAMILIES:
        raise UserError(f"method: {method} rotates keys, which is supported for {', '.join(FAMILIES)} only")
    before = model.config._attn_implementation
    if before != NAME:
        switch_attention(model)
        warnings.warn(f"the model's attention is now {NAME!r}, it was {before!r}", stacklevel=2)
    else:
        check_model(model)
    attention = "flash_attention_2" if before == "flash_attention_2" else "sdpa"
    reset_rope(model)
    return DropInCache(model, built, budget, max_new_tokens, attention)


def switch_attention(model: PreTrainedModel) -> None:
    """Switch a model to kvbench's attention; one that is refused is left as it was.

    Raises:
        UserError: its attention is not supported.
    """
    before: Any = model.config._attn_implementation
    with reading(f"model: '{model.config.model_type}' does not take another attention"):
        model.set_attn_implementation(register_attention())
    try:
        check_model(model)
    except UserError:
        model.set_attn_implementation(before)
        raise


class DropInCache(Cache):
    """A cache for one call of `generate`: one prompt, or a batch padded on the left, with a budget per row.

    Args:
        model: the model.
        method: compresses each row.
        budget: None for methods that have none.
        max_new_tokens: room for generated tokens.
        attention: attention of the prefill, sdpa or flash_attention_2.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        method: Method,
        budget: Budget | None,
        max_new_tokens: int,
        attention: str,
    ) -> None:
        self.model, self.method, self.budget = model, method, budget
        self.room, self.attention = max_new_tokens, attention
        self.starts: list[int] = []
        self.real_BT: Tensor | None = None
        self.batch: BatchCache | None = None
        self.dropin_layers = [
            DropInLayer(self) for _ in range(model.config.get_text_config().num_hidden_layers)
        ]
        super().__init__(layers=list(self.dropin_layers))

    def resident_bytes(self, row: int = 0) -> int:
        """Bytes that a row holds now.

        Raises:
            UserError: before the second token, when nothing is compressed yet.
        """
        if self.batch is None:
            raise UserError("resident_bytes: nothing is compressed before the second token")
        return self.batch.resident(row).bytes

    def locate_rows(self, length: int, rows: int, padding_BT: Tensor | None) -> None:
        """Set the start of each row of the prompt."""
        check_window(self.model, length + self.room)
        self.starts = [0] * rows
        if padding_BT is not None:
            if padding_BT.shape != (rows, length):
                raise UserError(
                    f"attention_mask: must be [{rows}, {length}], as the prompt, not {list(padding_BT.shape)}"
                )
            real = padding_BT.bool()
            if not bool(real.any(1).all()):
                raise UserError("attention_mask: a row has no token")
            if bool((real[:, 1:] < real[:, :-1]).any()):
                raise UserError("attention_mask: pad on the left (tokenizer.padding_side = 'left')")
            self.starts, self.real_BT = (~real).sum(1).tolist(), real
        # positions count real tokens, and one pass serves all rows
        shortest, longest = length - max(self.starts), length - min(self.starts)
        check_rope(rope_until(self.model, shortest), shortest, longest + max(self.room - 1, 0))

    def check_step(self, padding_BT: Tensor) -> None:
        """Check that a decode step has the prompt's padding and no more.

        Raises:
            UserError: it does not.
        """
        length = self.dropin_layers[0].length
        real = padding_BT.bool()
        prompt = torch.ones_like(real[:, :length]) if self.real_BT is None else self.real_BT
        if not (torch.equal(real[:, :length], prompt) and bool(real[:, length:].all())):
            raise UserError("attention_mask: a step must mask the padding of the prompt and nothing else")

    def compress(self) -> None:
        """Replace the prefilled keys and values of every layer by those that the method keeps.

        Raises:
            NotFiniteError: the prefill, or the method's scores, hold NaN or an infinity.
        """
        needs, count = self.method.needs, len(self.dropin_layers)
        rope = rope_of(self.model) if "rope" in needs else None
        kept_so_far: list[dict[Any, Any]] = [{} for _ in self.starts]
        check_snapshot(
            prefilled.snapshot(number, count)
            for number, layer in enumerate(self.dropin_layers)
            for prefilled in layer.prefilled
        )
        for number, layer in enumerate(self.dropin_layers):
            lanes: list[Lane | StoredLane] = []
            for row, prefilled in enumerate(layer.prefilled):
                snapshot = prefilled.snapshot(number, count)
                snapshot.rope = rope
                shape = Shape(snapshot.length, self.room, count, snapshot.k_HTD.shape[-1])
                cell = self.method.resolve(shape, self.budget)
                lanes += cell_lanes(snapshot, cell, slice(row, row + 1), self.room, {}, kept_so_far[row])
            first = layer.prefilled[0].snapshot(number, count)
            layer.compressed = BatchLayer(
                lanes, len(self.starts), first.group, first.k_HTD, first.heads, self.room
            )
            layer.prefilled = []
        layers = [layer.compressed for layer in self.dropin_layers if layer.compressed is not None]
        self.batch = BatchCache(layers, self.dropin_layers[0].length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise UserError("num_beams: a kvbench cache serves greedy search and sampling")

    def crop(self, tokens_to_remove: Any = None, **kwargs: Any) -> None:
        raise UserError("past_key_values: a kvbench cache cannot be cropped")

    def reset(self) -> None:
        raise UserError("past_key_values: a kvbench cache serves one prompt; make a new one")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise UserError("past_key_values: the rows of a kvbench cache are those of its prompt")

    def batch_select_indices(self, indices: Tensor) -> None:
        raise UserError("past_key_values: the rows of a kvbench cache are those of its prompt")

    def __deepcopy__(self, memo: dict[int, Any]) -> DropInCache:
        memo[id(self.model)] = self.model
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied


class DropInLayer(CacheLayerMixin):
    """One layer: the dense prefill of every row, then the compressed batch."""

    def __init__(self, owner: DropInCache) -> None:
        super().__init__()
        self.owner = owner
        self.length = 0
        self.prefilled: list[PrefillLayer] = []
        self.compressed: BatchLayer | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.length == 0:
            self.keys, self.values, self.length = key_states, value_states, key_states.shape[2]
            return self, self
        if key_states.shape[2] != 1:
            raise UserError(
                "past_key_values: a kvbench cache serves one prompt, prefilled at once; make a new one"
            )
        if self.owner.batch is None:
            self.owner.compress()
        assert self.compressed is not None
        if self.compressed.filled == self.owner.room:
            raise UserError(f"max_new_tokens: the cache was made for {self.owner.room}")
        self.compressed.update(key_states, value_states)
        return self, self

    def attend(self, q_BQTD: Tensor, scaling: float, padding_BT: Tensor | None = None) -> Tensor:
        if self.compressed is not None:
            if padding_BT is not None and self is self.owner.dropin_layers[0]:
                self.owner.check_step(padding_BT)
            return self.compressed.attend(q_BQTD, scaling)
        assert self.keys is not None and self.values is not None
        if not self.owner.starts:
            self.owner.locate_rows(self.length, len(q_BQTD), padding_BT)
        out = torch.zeros_like(q_BQTD).transpose(1, 2)
        needs, window = self.owner.method.needs, self.owner.method.parts()[0].window
        for row, start in enumerate(self.owner.starts):
            length = self.length - start
            queries = length if "queries" in needs else min(max(window, 1), length)
            layer = PrefillLayer(length, queries, self.owner.attention, "attention_sum" in needs)
            one = slice(row, row + 1)
            layer.update(self.keys[one, :, start:], self.values[one, :, start:])
            out[one, start:] = layer.attend(q_BQTD[one, :, start:], scaling)
            self.prefilled.append(layer)
        self.keys = self.values = None
        return out

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: the first update sets the sizes."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.length + (self.compressed.filled if self.compressed is not None else 0)

    def get_max_length(self) -> int:
        return -1
