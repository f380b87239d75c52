"""The pass over a prefilled text that KVzip needs: the model is asked to repeat it, chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbench.engine.batch import BatchCache, BatchLayer
from kvbench.engine.finite import check
from kvbench.engine.lanes import plain_lane
from kvbench.engine.prefill import Snapshot
from kvbench.engine.rope import check_rope
from kvbench.kernels.clock import synchronize
from kvbench.methods.base import LayerSnapshot
from kvbench.methods.repeat import Repeat, repeat_scores

#: the official requests; the second one goes on with the last words of the chunk before
FIRST = "\n\nRepeat the previous context exactly."
LATER = "\n\nRepeat the part of the previous context exactly, starting with "
#: tokens of these last words
LAST_WORDS = 8


@dataclass(frozen=True)
class Request:
    """What makes the model repeat a chunk.

    Attributes:
        ids: the request and the chunk itself, as they follow the text.
        start: first token of the chunk.
        end: the token behind it.
    """

    ids: list[int]
    start: int
    end: int


def requests(
    ids: list[int],
    chunk: int,
    sinks: int,
    tail: Callable[[str], list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Request]:
    """The requests for a text.

    Args:
        ids: the text, L tokens.
        chunk: tokens of a chunk.
        sinks: first tokens, which are not repeated.
        tail: the tokens that follow the text in a prompt with the given question, template included.
        tokenizer: of the model.
    """
    found = []
    for start in range(sinks, len(ids), chunk):
        end = min(start + chunk, len(ids))
        asked = FIRST
        if start > sinks:
            asked = LATER + str(tokenizer.decode(ids[start - LAST_WORDS : start], skip_special_tokens=True))
        found.append(Request([*tail(asked), *ids[start:end]], start, end))
    return found


class _RequestLayer(BatchLayer):
    """One layer of the dense cache, which records the queries of a request."""

    def __init__(self, snapshot: LayerSnapshot, room: int) -> None:
        lane = plain_lane(snapshot, slice(0, 1))
        super().__init__([lane], 1, snapshot.group, snapshot.k_HTD, snapshot.heads, room)
        self.q_QND = snapshot.q_QWD[:, :0]

    def attend(self, q_BQTD: Tensor, scaling: float) -> Tensor:
        self.q_QND = q_BQTD[0]
        return super().attend(q_BQTD, scaling)


@torch.inference_mode()
def repeat(
    model: PreTrainedModel, snapshot: Snapshot, chunk: int, sinks: int, asked: Sequence[Request]
) -> None:
    """Let the model repeat a text, and give every layer of the snapshot the scores.

    Args:
        model: loaded with the attention hook.
        snapshot: the prefilled text.
        chunk: see `KVzip`.
        sinks: likewise.
        asked: from `requests`.

    Raises:
        UserError: the model's rotary frequencies change behind the text.
        NotFiniteError: queries or keys of the repetition are not finite.
    """
    started = time.perf_counter()
    longest = max((len(request.ids) for request in asked), default=0)
    check_rope(snapshot.rope_until, snapshot.length, snapshot.length + longest)
    found = Repeat(sinks)
    for layer in snapshot.layers:
        scores = layer.k_HTD.new_zeros(layer.heads, layer.length, dtype=torch.float32)
        scores[:, :sinks] = torch.inf
        found.scores[layer.layer] = scores
        layer.repeats[chunk, sinks] = found
    for request in asked:
        count = len(request.ids)
        layers = [_RequestLayer(layer, count) for layer in snapshot.layers]
        cache = BatchCache(list[BatchLayer](layers), snapshot.length)
        cache.set_selecting(False)
        position = torch.arange(snapshot.length, snapshot.length + count, device=model.device)[None]
        ids = torch.tensor([request.ids], device=model.device)
        model.base_model(input_ids=ids, position_ids=position, past_key_values=cache, use_cache=True)
        for layer, fed in zip(snapshot.layers, layers, strict=True):
            keys = fed.k_tail[0]
            check([("queries of the repetition", fed.q_QND), ("keys of the repetition", keys)])
            chosen = slice(request.start, request.end)
            found.scores[layer.layer][:, chosen] = repeat_scores(
                fed.q_QND, keys, layer.k_HTD, sinks, request.start, request.end, layer.scaling
            )
    synchronize(model.device)
    found.seconds = time.perf_counter() - started
