"""Evictions that go on while decoding: what they see of a lane, and when they drop tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.engine.failures import AuditError
from kvbench.methods.base import Eviction, LayerSnapshot, StepView
from kvbench.methods.base.step_view import Rope
from kvbench.methods.storage import Rolling

#: name of the carried positions, which the engine fills in for appended tokens
POSITION = "position"


@dataclass(kw_only=True)
class Dropping:
    """Drops tokens from the rolling store of one lane.

    Attributes:
        eviction: chooses them.
        store: the tokens.
        layer: index of the layer.
        num_layers: layers of the model.
        prompt: tokens of the prompt so far.
        scaling: factor on the attention logits.
        recent_RHGWD: queries of the last tokens, as many as the eviction observes and the text has; or None.
        rope: see `LayerSnapshot`.
    """

    eviction: Eviction
    store: Rolling
    layer: int
    num_layers: int
    prompt: int
    scaling: float
    recent_RHGWD: Tensor | None = None
    rope: Rope | None = None

    def __post_init__(self) -> None:
        self.length = self.prompt
        # most tokens that the next drop may find; known from the first one on
        self._most: int | None = None

    @classmethod
    def begin(
        cls, eviction: Eviction, store: Rolling, snapshot: LayerSnapshot, heads: slice, rows: int
    ) -> Dropping:
        """At the end of the prompt, for some KV heads and rows."""
        recent = None
        if eviction.observes:
            q_HGWD = snapshot.q_QWD.unflatten(0, (snapshot.heads, -1))[heads, :, -eviction.observes :]
            recent = q_HGWD.expand(rows, -1, -1, -1, -1).clone()
        return cls(
            eviction=eviction, store=store, layer=snapshot.layer, num_layers=snapshot.num_layers,
            prompt=snapshot.length, scaling=snapshot.scaling, recent_RHGWD=recent, rope=snapshot.rope,
        )  # fmt: skip

    @property
    def row_bytes(self) -> int:
        """Bytes of the queries that one row holds."""
        return (
            0
            if self.recent_RHGWD is None
            else self.recent_RHGWD[0].numel() * self.recent_RHGWD.element_size()
        )

    def appended(self, count: int, question: bool) -> None:
        """Account for tokens that the store has just got; those of a question belong to the prompt."""
        self.length += count
        if question:
            self.prompt += count
            self._most = None
        if self.eviction.locates:
            position = self.store.carried[POSITION]
            new = torch.arange(self.length - count, self.length, device=position.device, dtype=position.dtype)
            position[..., -count:] = new

    def step(self, q_RHGND: Tensor, k_RHCD: Tensor, v_RHCD: Tensor, attention: Callable[[], Tensor]) -> int:
        """Records a step and drops what is due; returns the number of tokens dropped per KV head.

        Args:
            q_RHGND: queries of the N tokens appended last.
            k_RHCD: keys of all slots, as attention read them.
            v_RHCD: their values.
            attention: computes the probabilities of the N tokens `[R, H, G, N, C]`.

        Raises:
            AuditError: more is held than the last drop left and an interval of tokens.
        """
        eviction, store, count = self.eviction, self.store, q_RHGND.shape[3]
        if self.recent_RHGWD is not None:
            joined = torch.cat([self.recent_RHGWD, q_RHGND], dim=3)[:, :, :, -eviction.observes :]
            self.recent_RHGWD = joined.contiguous()
        held = eviction.held_after(store.hold, self.prompt, self.length - count, self.length)
        if self._most is not None and store.count > self._most:
            raise AuditError(
                f"{eviction.name}, layer {self.layer}: holds {store.count} tokens, more than {self._most}: what a drop "
                f"left and an interval of {eviction.interval}"
            )
        drop = 0 if held is None else max(0, store.count - held)
        view = StepView(
            attention=attention, carried=store.carried, k_RHCD=k_RHCD, v_RHCD=v_RHCD, q_RHGWD=self.recent_RHGWD,
            position_RHC=store.carried.get(POSITION), prompt=self.prompt, length=self.length, layer=self.layer,
            num_layers=self.num_layers, scaling=self.scaling, rope=self.rope,
        )  # fmt: skip
        gone_RHE = eviction.step(view, drop)
        if drop:
            assert gone_RHE is not None
            store.drop(gone_RHE)
        if held is not None:
            self._most = max(held, store.count) + eviction.interval
        return drop
