"""Evictions: permanent removal of tokens after prefill, and while decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvbench.kernels.top_k import top_k
from kvbench.methods.base.component import Component
from kvbench.methods.base.step_view import StepView
from kvbench.methods.budget import Quota, Shape
from kvbench.methods.snapshot import Kept, LayerSnapshot


class Eviction(Component):
    """Permanent removal after prefill and, if `steps` is true, while decoding."""

    family = "eviction"
    bytes_formula = "2 * keep * D * element"
    #: queries of the observation window that the snapshot must hold
    window: int = 0
    #: tokens appended from one drop to the next
    interval: int = 1
    #: whether anything is ever evicted
    evicts: ClassVar[bool] = True
    #: whether KV heads of a layer may keep different numbers of tokens, with the budget as their mean
    ragged: ClassVar[bool] = False
    #: whether a score of +inf marks a token that is kept in any case; all other scores must be finite
    pins: ClassVar[bool] = False
    #: numbers per token that `carry` returns, by name
    carries: ClassVar[Mapping[str, torch.dtype]] = {}
    #: whether `step` needs the tokens' positions in the text
    locates: ClassVar[bool] = False

    def scores(self, snapshot: LayerSnapshot) -> Any:
        """The part of the choice that does not depend on the budget; computed once per prompt, layer and setting."""
        return None

    def keep(self, snapshot: LayerSnapshot, scores: Any, quota: Quota) -> Kept:
        """The tokens to keep: by default those of highest score, ties going to the earlier token.

        Args:
            snapshot: the layer.
            scores: what `scores` returned for it, here `[H, T]`, or `[1, T]` for one choice per layer.
            quota: how many tokens to keep in this layer, fewer than the snapshot holds.
        """
        return Kept.uniform(top_k(scores, quota.tokens).expand(snapshot.heads, -1))

    def layer_tokens(self, quota: Quota, shape: Shape) -> list[int]:
        """Tokens to keep per KV head, by layer: by default `quota.tokens` in each."""
        return [quota.tokens] * shape.num_layers

    def own_tokens(self, tokens: int, group: int) -> int:
        """Tokens that each list holds for a budget of `tokens` per KV head, where query heads keep their own.

        Args:
            tokens: the budget of a KV head in one layer.
            group: query heads per KV head, G.
        """
        return tokens

    def notes(self, quota: Quota, shape: Shape) -> tuple[str, ...]:
        """Remarks on the budget for the reader of a result, e.g. that a fallback was taken."""
        return ()

    @property
    def needs(self) -> frozenset[str]:
        """Further contents of the snapshot: "attention_sum", "queries", "rope", "boundaries", "answer", "repeat"."""
        return frozenset()

    @property
    def repeats(self) -> tuple[int, int] | None:
        """Tokens of a chunk, and sinks, of the repetition that is needed with "repeat"."""
        return None

    @property
    def steps(self) -> bool:
        """Whether `step` holds the cache at its budget while decoding; a parameter may switch it off."""
        return type(self).step is not Eviction.step

    @property
    def meets_budget(self) -> bool:
        """Whether exactly the budget is kept whatever the scores; otherwise it is an upper bound."""
        return not self.ragged

    @property
    def excess(self) -> int:
        """Tokens that a rounding rule may keep beyond the budget."""
        return 0

    @property
    def reindexes(self) -> bool:
        """Whether kept keys are rotated to consecutive positions that end with the prompt.

        Needs "rope". Distances to the query are then those inside the cache, as in StreamingLLM's paper. When `step`
        drops slots, they come right after the first `leading` ones, whose keys are then rotated further by the number
        dropped.
        """
        return False

    @property
    def leading(self) -> int:
        """Slots before those that `step` drops, for evictions that reindex."""
        return 0

    @property
    def needs_budget(self) -> bool:
        """Whether a budget says how much is kept."""
        return True

    @property
    def at_prefill(self) -> bool:
        """Whether tokens are evicted after prefill; otherwise the prompt stays whole until `step` drops some."""
        return True

    @property
    def observes(self) -> int:
        """Queries of the last tokens that `step` sees, W; they are held, and their bytes count."""
        return 0

    def held_after(self, hold: int, prompt: int, before: int, length: int) -> int | None:
        """Tokens per KV head that a drop leaves; None where none is due.

        By default `hold`, whenever another `interval` tokens of the answer are complete.

        Args:
            hold: the rule's limit.
            prompt: tokens of the prompt; with `first_token=compressed`, without its last one.
            before: tokens of the text before the last append.
            length: tokens of the text after it.
        """
        return hold if crossed(self.interval, before - prompt, length - prompt) else None

    def carry(self, snapshot: LayerSnapshot, scores: Any, kept: Kept) -> Mapping[str, list[Tensor]]:
        """Numbers per kept token for later calls of `step` (H2O's sums): those in `carries`, per KV head `[K_h]`."""
        return {}

    def step(self, view: StepView, drop: int) -> Tensor | None:
        """Records a decode step of a layer's rows and chooses the slots to drop after it.

        Every row and KV head chooses for itself.

        Args:
            view: the rows, before the drop.
            drop: number of slots to drop, E; 0 while the cache is below its budget or no drop is due. C - E stay.

        Returns:
            The slots, int64 `[R, H, E]`, distinct; ignored when E is 0.
        """
        raise NotImplementedError

    def eager(self) -> Eviction:
        """The same with a drop at each decode step as far as parameters allow, to find out what a drop calls."""
        names = {field.name for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return dataclasses.replace(self, interval=1) if "interval" in names else self  # type: ignore[type-var]


def crossed(interval: int, before: int, after: int) -> bool:
    """Whether a positive multiple of an interval lies in (before, after]."""
    return max(after, 0) // interval > max(before, 0) // interval


@dataclass(frozen=True, kw_only=True)
class KeepAll(Eviction):
    """No eviction."""

    name = "none"
    evicts = False
