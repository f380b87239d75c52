"""A decode step on static tensors, which a CUDA graph can hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.config.numbers import NotFiniteError
from kvbench.engine.batch import BatchCache
from kvbench.engine.finite import check, total


class Step:
    """One greedy decode step of a batch.

    Args:
        model: loaded with the attention hook.
        cache: the batch.
        last: the token that every row is fed first.
        rows: rows of the batch.
    """

    #: steps run on a side stream before the capture, as CUDA graphs require, and the captured one
    CAPTURE_STEPS = 4

    def __init__(self, model: PreTrainedModel, cache: BatchCache, last: int, rows: int) -> None:
        self.model, self.cache = model, cache
        self.tokens = torch.full((rows, 1), last, device=model.device)
        self.position = torch.full((rows, 1), cache.get_seq_length(), device=model.device)
        # summed on the device, so that no step waits
        self.logits_sum = torch.zeros(rows, device=model.device)

    def eager(self) -> None:
        """Feed each row's token and replace it by the next one."""
        logits: Tensor = self.model(
            input_ids=self.tokens, position_ids=self.position, past_key_values=self.cache, use_cache=True
        ).logits
        self.tokens.copy_(logits[:, -1:].argmax(-1))
        self.logits_sum.add_(total(logits[:, -1], -1))
        self.position.add_(1)

    def check(self) -> None:
        """Check everything that the steps so far computed; waits for the device.

        Raises:
            NotFiniteError: logits, or appended keys or values, are not finite.
        """
        appended = self.cache.finite_tokens()
        check([("logits of the decode steps", self.logits_sum)])
        if not bool(appended.all()):
            raise NotFiniteError("keys or values of the decode steps are not finite")

    def captured(self) -> Callable[[], None]:
        """The step as a CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.CAPTURE_STEPS - 1):
                self.eager()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.eager()
        return graph.replay
