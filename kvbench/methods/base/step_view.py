"""What an eviction sees while decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from kvbench.methods.snapshot import LayerSnapshot

Rope = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass
class StepView:
    """Some rows of one layer after a decode step. Slots are in order of position: the newest token is the last.

    KV heads come one at a time (H = 1) where they keep different numbers of tokens.

    Attributes:
        attention: computes `probs_RHGNC`, which most steps of most evictions do not need.
        carried: by name, the values from `Eviction.carry` `[R, H, C]`, 0 for appended tokens, to be updated in place.
        k_RHCD: post-RoPE keys of all C slots held, in the model's dtype.
        v_RHCD: their values.
        q_RHGWD: post-RoPE queries of the last W tokens, those of the prompt included; if the eviction `observes`.
        position_RHC: positions in the text, int32; if the eviction `locates`.
        prompt: tokens of the prompt, evicted ones included.
        length: tokens of the text so far; the newest one has position `length - 1`.
        layer: index of the layer.
        num_layers: layers of the model.
        scaling: factor on the attention logits.
        rope: see `LayerSnapshot`; if the eviction needs "rope".
    """

    attention: Callable[[], Tensor]
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    k_RHCD: Tensor = field(default_factory=lambda: torch.empty(0))
    v_RHCD: Tensor = field(default_factory=lambda: torch.empty(0))
    q_RHGWD: Tensor | None = None
    position_RHC: Tensor | None = None
    prompt: int = 0
    length: int = 0
    layer: int = 0
    num_layers: int = 1
    scaling: float = 1.0
    rope: Rope | None = None

    @cached_property
    def probs_RHGNC(self) -> Tensor:
        """Attention of the N tokens appended since the last call to all C slots held, fp32.

        N is 1, except for the question of a query-agnostic prompt; 0 for slots that a selection did not read.
        """
        return self.attention()

    def snapshot(self, row: int) -> LayerSnapshot:
        """What a row holds, as prefill would have left it: tokens are missing, the last queries are there."""
        assert self.q_RHGWD is not None
        return LayerSnapshot(
            self.k_RHCD[row], self.v_RHCD[row], self.q_RHGWD[row].flatten(0, 1), self.layer, self.num_layers,
            self.scaling, rope=self.rope, end=self.length,
        )  # fmt: skip
