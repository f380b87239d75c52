"""What prefill leaves of a layer, and what an eviction keeps of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.kernels import window_scores as kernels
from kvbench.methods.repeat import Repeat


@dataclass
class LayerSnapshot:
    """One layer after the dense prefill of one prompt.

    Attributes:
        k_HTD: post-RoPE keys `[H, T, D]`, heads not expanded.
        v_HTD: values `[H, T, D]`.
        q_QWD: post-RoPE queries of the last W positions `[Q, W, D]`, W at least every method's window (or T);
            all of them (W = T) if a method needs "queries".
        layer: index of the layer.
        num_layers: layers of the model.
        scaling: factor on the attention logits.
        attention_sum_QT: softmax attention that each key received, summed over all queries of the prompt, fp32; if a
            method needs "attention_sum".
        rope: from N position differences (which may be negative) to (cos, sin), each `[N, D]` fp32, for
            `kvbench.kernels.rope.rotate`; if a method needs "rope".
        answer_sum_QT: softmax attention that each key receives, summed over the decode steps of dense's own answer,
            fp32; if a method needs "answer".
        boundaries_T: int8, 2 for a token that ends a sentence, 1 for one that ends a clause, else 0; if a method needs
            "boundaries".
        repeats: by chunk and sinks of KVzip, what the text got while it was repeated; if a method needs "repeat".
        turn: last tokens of the prompt whose queries may observe, those of the present turn of a conversation; None for
            all.
        end: tokens of the text so far, where some of them are not held any more; None where all are.
    """

    k_HTD: Tensor
    v_HTD: Tensor
    q_QWD: Tensor
    layer: int = 0
    num_layers: int = 1
    scaling: float = 1.0
    attention_sum_QT: Tensor | None = None
    rope: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    answer_sum_QT: Tensor | None = None
    boundaries_T: Tensor | None = None
    repeats: dict[tuple[int, int], Repeat] = dataclasses.field(default_factory=dict)
    turn: int | None = None
    end: int | None = None
    _windows: dict[int, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.k_HTD.shape[1]

    @property
    def heads(self) -> int:
        return self.k_HTD.shape[0]

    @property
    def group(self) -> int:
        return self.q_QWD.shape[0] // self.k_HTD.shape[0]

    def observed(self, window: int) -> int:
        """Size of an observation window: `window`, but within the prompt and the present turn."""
        return min(window, self.length if self.turn is None else self.turn)

    def window_scores(self, window: int) -> Tensor:
        """Attention of the last `window` queries (those observed, if fewer) to every key, summed: `[Q, T]` fp32.

        Cached until `forget`, so that all methods and budgets share one computation.
        """
        window = self.observed(window)
        if window not in self._windows:
            assert window <= self.q_QWD.shape[1], "the snapshot holds fewer queries than the window"
            queries = self.q_QWD[:, self.q_QWD.shape[1] - window :]
            self._windows[window] = kernels.window_scores(queries, self.k_HTD, self.scaling)
        return self._windows[window]

    def forget(self) -> None:
        """Drop the cached scores, once every method has chosen."""
        self._windows.clear()


@dataclass
class Kept:
    """The tokens that an eviction keeps in one layer.

    Attributes:
        positions: per KV head the kept positions, ascending, int64 `[K_h]`.
        members: per KV head which query heads read which positions, bool `[G, K_h]`; None if all read all.
    """

    positions: list[Tensor]
    members: list[Tensor] | None = None

    def others(self, length: int) -> Tensor:
        """Of `length` tokens those that are not kept, int64 `[H, E]`; equally many for every KV head."""
        heads = len(self.positions)
        gone = self.positions[0].new_ones(heads, length, dtype=torch.bool)
        gone.scatter_(1, torch.stack(self.positions), False)
        return gone.nonzero()[:, 1].view(heads, -1)

    @classmethod
    def uniform(cls, positions_HK: Tensor) -> Kept:
        """Equally many tokens for every KV head."""
        return cls(list(positions_HK.unbind(0)))

    @classmethod
    def per_query_head(cls, chosen_QT: Tensor, heads: int) -> Kept:
        """One set per query head: keeps their union per KV head, with members."""
        positions, members = [], []
        for chosen_GT in chosen_QT.unflatten(0, (heads, -1)):
            union = chosen_GT.any(0).nonzero()[:, 0]
            positions.append(union)
            members.append(chosen_GT[:, union])
        return cls(positions, members)
