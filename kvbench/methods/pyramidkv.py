"""PyramidKV: SnapKV with more tokens in the lower layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from kvbench.methods.base import Quota, Shape
from kvbench.methods.registry import register
from kvbench.methods.snapkv import SnapKV


@register("pyramidkv")
@dataclass(frozen=True, kw_only=True)
class PyramidKV(SnapKV):
    """SnapKV with a budget that falls linearly from the first layer to the last; `budget` is the mean.

    With b = budget - window, the last layer keeps the window and about b / `beta` other tokens, the first layer the
    window and 2 b less that. `mode=paper` is the official code: integer steps, so that the mean may be up to half a
    token per layer above the budget; prompts shorter than 2 b get the same budget in every layer. `mode=kvpress` counts
    the window within a layer's budget, rounds per layer, and gives every layer the same budget whenever the last one
    would keep less than the window (budgets below beta * window). A fallback to one budget for all layers is noted in
    the result.
    """

    differs = (
        "The paper's budgets are an arithmetic sequence; the code rounds its steps down, gives every layer "
        "the same budget on prompts below twice the budget, and evicts nothing from prompts below the "
        "budget. kvpress counts the window within a layer's budget and falls back to SnapKV for budgets "
        "below beta * window (1280 tokens at its defaults)."
    )
    source = (
        "Cai et al. 2024, arXiv 2406.02069, section 4; official beta 20, window 8, kernel 7, max pooling, "
        "heads query_head"
    )
    budget_meaning = "mean over layers of the tokens kept per KV head, window included"

    positive = (*SnapKV.positive, "beta")
    source_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"window": 8, "pool": "max", "kernel": 7},
        "kvpress": {"window": 64, "pool": "avg", "kernel": 5},
    }

    beta: int = 20

    def layer_tokens(self, quota: Quota, shape: Shape) -> list[int]:
        if self.mode == "kvpress":
            return self._kvpress(quota, shape)
        tokens = quota.tokens
        room, share = shape.compressed - self.window, tokens - self.window
        # as the official code: no eviction below the budget, one budget for all layers below twice the share
        if share < 1 or shape.num_layers == 1 or shape.compressed < max(tokens, 2 * share):
            return [tokens] * shape.num_layers
        low = share // self.beta
        high = 2 * share - low
        if high >= room:
            high, low = room, 2 * share - room
        step = (high - low) // (shape.num_layers - 1)
        return [high - layer * step + self.window for layer in range(shape.num_layers)]

    def notes(self, quota: Quota, shape: Shape) -> tuple[str, ...]:
        layers = self.layer_tokens(quota, shape)
        if max(layers) < shape.compressed and len(set(layers)) == 1:
            return ("pyramidkv: the same budget in every layer, as SnapKV",)
        return ()

    def _kvpress(self, quota: Quota, shape: Shape) -> list[int]:
        """kvpress's floating-point steps, from the fraction removed if the budget is a ratio."""
        share = float(quota.tokens)
        if quota.ratio is not None:
            share = self.window + shape.compressed * (1 - float(1 - Decimal(quota.ratio))) - self.window
        room = shape.compressed - self.window
        low = share / self.beta
        high = share * 2 - low
        if high >= room:
            high, low = room, share * 2 - room
        if not shape.compressed >= high >= low >= self.window:
            return [max(1, round(share))] * shape.num_layers
        step = (high - low) / max(1, shape.num_layers - 1)
        return [round(high - layer * step) for layer in range(shape.num_layers)]
