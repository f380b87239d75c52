"""Dense prefill of one prompt, and the snapshot that all methods share."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, CacheLayerMixin

from kvbench.config.errors import UserError
from kvbench.engine.offload import Offloaded, worthwhile
from kvbench.engine.rope import reset_rope, rope_of, rope_until, turning_rope
from kvbench.kernels.attention_sum import attention_sum
from kvbench.kernels.clock import synchronize
from kvbench.kernels.masked_attention import masked_attention
from kvbench.methods.base import LayerSnapshot, Method
from kvbench.models.boundaries import boundaries


@dataclass
class Snapshot:
    """Keys and values of every layer, and the last queries, after a dense prefill.

    Attributes:
        layers: one per layer of the model.
        length: tokens prefilled, L.
        logits: fp32 logits `[vocabulary]` after the last token.
        seconds: duration of the prefill.
        rope_until: most tokens of prompt and answer that are rotated alike, None without a limit.
        offloaded: the layers, where only the one in use is on the device.
    """

    layers: list[LayerSnapshot]
    length: int
    logits: Tensor
    seconds: float
    rope_until: int | None = None
    offloaded: Offloaded | None = None

    def in_use(self) -> Iterator[LayerSnapshot]:
        """The layers in order, each on the device until the next one is asked for."""
        for number, layer in enumerate(self.layers):
            self.use(number)
            yield layer

    def use(self, number: int) -> None:
        """Have a layer on the device: before anything of it is read."""
        if self.offloaded is not None:
            self.offloaded.use(number)

    def offload(self) -> bool:
        """Move what is not in use to the host's memory; whether that frees memory of the device."""
        if self.offloaded is not None or not worthwhile(self.logits.device):
            return False
        try:
            self.offloaded = Offloaded(self.layers)
        except (RuntimeError, MemoryError):
            # neither has the host so much
            return False
        return True


def prefill_for(
    methods: Sequence[Method], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int],
    chunk: int = 1024, attention: str = "sdpa", turn: int | None = None,
) -> Snapshot:  # fmt: skip
    """A prefill whose snapshot holds what the methods need and no more; see `prefill` and `complete`."""
    needs, window = needed(methods)
    snapshot = prefill(model, ids, window, chunk, attention, needs)
    complete(snapshot, methods, model, tokenizer, ids, turn)
    return snapshot


def needed(methods: Sequence[Method]) -> tuple[frozenset[str], int]:
    """What methods need of a snapshot: see `Eviction.needs`, and the number of last queries."""
    needs = frozenset[str]().union(*(method.needs for method in methods))
    return needs, max([method.parts()[0].window for method in methods] + [1])


def complete(
    snapshot: Snapshot, methods: Sequence[Method], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    ids: list[int], turn: int | None = None,
) -> None:  # fmt: skip
    """Add to a snapshot what methods need and what follows from the model and the tokens.

    Args:
        snapshot: of the tokens.
        methods: of its cells.
        model: that made it.
        tokenizer: of the model.
        ids: the tokens.
        turn: see `LayerSnapshot.turn`.
    """
    needs, _ = needed(methods)
    found = boundaries(tokenizer, ids).to(model.device) if "boundaries" in needs else None
    rope = rope_of(model) if "rope" in needs else None
    for layer in snapshot.layers:
        layer.boundaries_T, layer.rope, layer.turn = found, rope, turn


@torch.inference_mode()
def prefill(
    model: PreTrainedModel, ids: list[int], window: int, chunk: int = 1024, attention: str = "sdpa",
    needs: frozenset[str] = frozenset(),
) -> Snapshot:  # fmt: skip
    """Run the model once over a prompt, in chunks, and keep the snapshot.

    Args:
        model: loaded with the attention hook.
        ids: the tokens.
        window: number of last queries to keep.
        chunk: tokens per forward pass; the peak memory of a pass is linear in the prompt length. One pass where the
            model's rotary frequencies would differ between passes.
        attention: sdpa, or flash_attention_2 where flash-attn is installed.
        needs: what else to keep, see `Eviction.needs`; `prefill_for` adds "boundaries".

    Raises:
        UserError: the model attends within a sliding window shorter than the prompt.
    """
    config = model.config.get_text_config()
    check_window(model, len(ids))
    reset_rope(model)
    if turning_rope(model, min(chunk, len(ids)), len(ids)):
        chunk = len(ids)
    start = time.perf_counter()
    window = len(ids) if "queries" in needs else min(window, len(ids))
    cache = PrefillCache(config.num_hidden_layers, len(ids), window, attention, "attention_sum" in needs)
    tokens = torch.tensor(ids, device=model.device)[None]
    hidden = None
    for low in range(0, len(ids), chunk):
        part = tokens[:, low : low + chunk]
        position = torch.arange(low, low + part.shape[1], device=model.device)[None]
        hidden = model.base_model(
            input_ids=part, position_ids=position, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
    assert hidden is not None, "an empty prompt"
    head = model.get_output_embeddings()
    assert head is not None
    logits = head(hidden)[0].float()
    synchronize(model.device)
    layers = [layer.snapshot(n, config.num_hidden_layers) for n, layer in enumerate(cache.prefill_layers)]
    if "rope" in needs:
        for layer in layers:
            layer.rope = rope_of(model)
    return Snapshot(layers, len(ids), logits, time.perf_counter() - start, rope_until(model, len(ids)))


def check_window(model: PreTrainedModel, length: int) -> None:
    """Check that a length fits the model's sliding window.

    Raises:
        UserError: the model attends within a sliding window shorter than `length`.
    """
    sliding = sliding_window(model)
    if sliding is not None and sliding < length:
        raise UserError(
            f"model: attends within a sliding window of {sliding} tokens; give a length below that"
        )


def sliding_window(model: PreTrainedModel) -> int | None:
    """Number of tokens that a query attends to, itself included; None without a limit."""
    config = model.config.get_text_config()
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


class PrefillLayer(CacheLayerMixin):
    """One layer: keys and values in one allocation, the window's queries, the attention sums of keys."""

    def __init__(self, length: int, window: int, attention: str, sums: bool = False) -> None:
        super().__init__()
        self.sums, self.attention_sum_QT = sums, None
        self.length, self.window, self.attention = length, window, attention
        self.filled = 0
        self.scaling = 1.0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        _, heads, _, dim = key_states.shape
        self.keys = key_states.new_empty(1, heads, self.length, dim)
        self.values = value_states.new_empty(1, heads, self.length, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        end = self.filled + key_states.shape[2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self, self

    def attend(self, q_BQTD: Tensor, scaling: float) -> Tensor:
        assert self.keys is not None and self.values is not None
        start = self.filled - q_BQTD.shape[2]
        self._record_queries(q_BQTD[0], start)
        self.scaling = scaling
        if self.sums:
            self._add_attention(q_BQTD[0])
        k, v = self.keys[:, :, : self.filled], self.values[:, :, : self.filled]
        if self.attention == "flash_attention_2":
            from flash_attn import flash_attn_func  # type: ignore[import-not-found]

            q, k, v = (x.transpose(1, 2) for x in (q_BQTD, k, v))
            return flash_attn_func(q, k, v, softmax_scale=scaling, causal=True)  # type: ignore[return-value]
        return masked_attention(q_BQTD, k, v, scaling).transpose(1, 2)

    def _record_queries(self, q_QTD: Tensor, start: int) -> None:
        first = self.length - self.window
        if not hasattr(self, "queries"):
            self.queries = q_QTD.new_empty(q_QTD.shape[0], self.window, q_QTD.shape[2])
        low = max(first, start)
        if low < self.filled:
            self.queries[:, low - first : self.filled - first] = q_QTD[:, low - start :]

    def _add_attention(self, q_QTD: Tensor) -> None:
        assert self.keys is not None
        if self.attention_sum_QT is None:
            self.attention_sum_QT = q_QTD.new_zeros(q_QTD.shape[0], self.length, dtype=torch.float32)
        keys = self.keys[0, :, : self.filled]
        self.attention_sum_QT[:, : self.filled] += attention_sum(q_QTD, keys, self.scaling)

    def snapshot(self, layer: int, num_layers: int) -> LayerSnapshot:
        assert self.keys is not None and self.values is not None and self.filled == self.length
        return LayerSnapshot(
            self.keys[0], self.values[0], self.queries, layer, num_layers, self.scaling, self.attention_sum_QT
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return self.length


class PrefillCache(Cache):
    """The cache of a dense prefill."""

    def __init__(self, num_layers: int, length: int, window: int, attention: str, sums: bool = False) -> None:
        self.prefill_layers = [PrefillLayer(length, window, attention, sums) for _ in range(num_layers)]
        super().__init__(layers=list(self.prefill_layers))
