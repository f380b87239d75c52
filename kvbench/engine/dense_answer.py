"""Dense's answer, decoded before compression for methods that use what it attends to."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.config.numbers import finite
from kvbench.engine.batch import BatchCache, BatchLayer
from kvbench.engine.decode import DecodeOptions
from kvbench.engine.finite import total
from kvbench.engine.lanes import plain_lane
from kvbench.engine.prefill import Snapshot
from kvbench.engine.rope import check_rope
from kvbench.kernels.attention_sum import attention_sum
from kvbench.methods.base import LayerSnapshot


class DenseAnswerLayer(BatchLayer):
    """One layer of the dense row, which records the queries of its decode steps."""

    def __init__(self, snapshot: LayerSnapshot, room: int) -> None:
        lane = plain_lane(snapshot, slice(0, 1))
        super().__init__([lane], 1, snapshot.group, snapshot.k_HTD, snapshot.heads, room)
        self.queries: list[Tensor] = []

    def attend(self, q_BQTD: Tensor, scaling: float) -> Tensor:
        if self.selecting:  # the question of a query-agnostic prompt is not a decode step
            self.queries.append(q_BQTD[0])
        return super().attend(q_BQTD, scaling)

    def sums(self, snapshot: LayerSnapshot) -> Tensor:
        """Attention of the recorded queries to the prompt, summed, `[Q, T]` fp32."""
        if not self.queries:
            return snapshot.q_QWD.new_zeros(snapshot.q_QWD.shape[0], snapshot.length, dtype=torch.float32)
        keys = torch.cat([snapshot.k_HTD, self.k_tail[0, :, : self.filled]], dim=1)
        summed_QT = attention_sum(torch.cat(self.queries, dim=1), keys, snapshot.scaling)
        return summed_QT[:, : snapshot.length].contiguous()


@torch.inference_mode()
def decode_dense_answer(
    model: PreTrainedModel, snapshot: Snapshot, question: list[int], last: int, options: DecodeOptions
) -> None:
    """Decode dense's answer, and set `answer_sum_QT` of every layer to what its decode steps attend to.

    Args:
        model: loaded with the attention hook.
        snapshot: the prefilled prompt.
        question: tokens between the snapshot and the last prompt token; not counted.
        last: the last prompt token, the first decode step (ignored when the first token is dense).
        options: of the decoding that gives the answer.

    Raises:
        NotFiniteError: a step's logits are not finite.
    """
    room = len(question) + options.max_new_tokens
    last_fed = snapshot.length + room - (options.first_token == "dense")
    check_rope(snapshot.rope_until, snapshot.length, last_fed)
    layers = [DenseAnswerLayer(layer, room) for layer in snapshot.layers]
    cache = BatchCache(list[BatchLayer](layers), snapshot.length)

    def feed(ids: list[int], number: int) -> int:
        start = cache.get_seq_length()
        position = torch.arange(start, start + len(ids), device=model.device)[None]
        tokens = torch.tensor([ids], device=model.device)
        out = model(input_ids=tokens, position_ids=position, past_key_values=cache, use_cache=True)
        logits = out.logits[0, -1].float()
        chosen = options.choose(logits[None], number)[0]
        token, value = torch.stack([chosen.double(), total(logits).double()]).tolist()
        finite(value, "the sum of the logits of dense's answer")
        return int(token)

    if question:
        cache.set_selecting(False)
        feed(question, 0)
        cache.set_selecting(True)
    token, steps = last, options.max_new_tokens
    answer: list[int] = []
    if options.first_token == "dense":
        token, steps = int(options.choose(snapshot.logits[None], 0)), steps - 1
        answer.append(token)
    for _ in range(steps):
        if answer and (token in options.eos or (options.ends is not None and options.ends(answer))):
            break
        token = feed([token], len(answer))
        answer.append(token)
    for layer, recorded in zip(snapshot.layers, layers, strict=True):
        layer.answer_sum_QT = recorded.sums(layer)
