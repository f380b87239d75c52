"""Evictions: permanent removal of tokens after prefill, and while decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from kvbench.kernels.top_k import top_k
from kvbench.methods.base.component import Component
from kvbench.methods.budget import Quota, Shape
from kvbench.methods.snapshot import Kept, LayerSnapshot


class Eviction(Component):
    """Permanent removal after prefill and, if `steps` is true, after each decode step."""

    family = "eviction"
    bytes_formula = "2 * keep * D * element"
    #: queries of the observation window that the snapshot must hold
    window: int = 0
    #: whether anything is ever evicted
    evicts: ClassVar[bool] = True
    #: whether KV heads of a layer may keep different numbers of tokens, with the budget as their mean
    ragged: ClassVar[bool] = False
    #: whether a score of +inf marks a token that is kept in any case; all other scores must be finite
    pins: ClassVar[bool] = False

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
        """Further contents of the snapshot: "attention_sum", "queries", "rope", "boundaries", "answer"."""
        return frozenset()

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

    def carry(self, snapshot: LayerSnapshot, scores: Any, kept: Kept) -> list[Tensor] | None:
        """A number per kept token for later calls of `step` (H2O's sums): per KV head fp32 `[K_h]`."""
        return None

    def step(self, probs_RHGNC: Tensor, carried_RHC: Tensor | None, drop: int) -> Tensor | None:
        """Records a decode step of a layer's rows and chooses the slots to drop after it.

        Slots are in order of position: the newest token is the last. Every row and KV head chooses for itself; KV heads
        come one at a time (H = 1) where they keep different numbers of tokens.

        Args:
            probs_RHGNC: attention of the N tokens appended since the last call (one, except for the question of a
                query-agnostic prompt) to all C slots held, fp32; 0 for slots that a selection did not read.
            carried_RHC: the values from `carry`, 0 for appended tokens, to be updated in place; None if `carry`
                returned None.
            drop: number of slots to drop, E; 0 while the cache is below its budget. C - E stay.

        Returns:
            The slots, int64 `[R, H, E]`, distinct; ignored when E is 0.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class KeepAll(Eviction):
    """No eviction."""

    name = "none"
    evicts = False
