"""What prefill leaves of a layer, and what an eviction keeps of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kvbench.kernels import window_scores as kernels


@dataclass
class LayerSnapshot:
    """What the dense prefill of one prompt leaves of one layer.

    Attributes:
        k_HTD: post-RoPE keys `[H, T, D]`, heads not expanded.
        v_HTD: values `[H, T, D]`.
        q_QWD: post-RoPE queries of the last W positions `[Q, W, D]`, W at least every method's window (or T);
            all of them (W = T) where a method needs "queries".
        layer: index of the layer.
        num_layers: layers of the model.
        scaling: factor on the attention logits.
        attention_sum_QT: softmax attention that each key got from all queries of the prompt, summed, fp32;
            where a method needs "attention_sum".
        rope: (cos, sin), each `[N, D]` fp32, of a rotation by N positions (differences may be negative), for
            `kvbench.kernels.rope.rotate`; where a method needs "rope".
        answer_sum_QT: softmax attention that each key gets from the decode steps of dense's own answer, summed,
            fp32; where a method needs "answer".
        boundaries_T: int8, 2 after whose token a sentence ends, 1 where a clause does, else 0; where a method
            needs "boundaries".
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

    def window_scores(self, window: int) -> Tensor:
        """Attention of the last `window` queries (T, if fewer) to every key, summed over them: `[Q, T]` fp32.

        Kept for the life of the snapshot, so that every method and budget shares one computation.
        """
        window = min(window, self.length)
        if window not in self._windows:
            assert window <= self.q_QWD.shape[1], "the snapshot holds fewer queries than the window"
            queries = self.q_QWD[:, self.q_QWD.shape[1] - window :]
            self._windows[window] = kernels.window_scores(queries, self.k_HTD, self.scaling)
        return self._windows[window]

    def forget(self) -> None:
        """Drop what was kept for sharing, once every method has chosen."""
        self._windows.clear()


@dataclass
class Kept:
    """The tokens that an eviction keeps in one layer.

    Attributes:
        positions: per KV head the kept positions, ascending, int64 `[K_h]`.
        members: per KV head which query head reads which of them, bool `[G, K_h]`; None when all do.
    """

    positions: list[Tensor]
    members: list[Tensor] | None = None

    @classmethod
    def uniform(cls, positions_HK: Tensor) -> Kept:
        """The same number of tokens for every KV head."""
        return cls(list(positions_HK.unbind(0)))

    @classmethod
    def per_query_head(cls, chosen_QT: Tensor, heads: int) -> Kept:
        """A set per query head: kept is their union per KV head, with who reads what."""
        positions, members = [], []
        for chosen_GT in chosen_QT.unflatten(0, (heads, -1)):
            union = chosen_GT.any(0).nonzero()[:, 0]
            positions.append(union)
            members.append(chosen_GT[:, union])
        return cls(positions, members)
