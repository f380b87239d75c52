"""RocketKV: SnapKV eviction, then hybrid sparse attention, under one traffic budget."""

from dataclasses import dataclass
from typing import Literal

from kvbench.config.errors import UserError
from kvbench.methods.base import Budget, Eviction, LayerRule, Method, Resolved, Selection, Shape
from kvbench.methods.hsa import HSA
from kvbench.methods.registry import register
from kvbench.methods.rocket_budget import capacity, split_traffic
from kvbench.methods.snapkv import SnapKV


@register("rocketkv")
@dataclass(frozen=True, kw_only=True)
class RocketKV(Method):
    """Keeps C1 - M tokens by group-shared SnapKV with a wide max pool, and reads t / 2 of them per step by HSA.

    Sizes follow from S, the whole prompt and M new tokens, as in the official code; a traffic budget t covers a prompt
    from its compressed tokens and M on.

    `split` is the share of the compression that the first stage takes: adaptive or a number. `floor_2m` is the accuracy
    code's floor of 2 M tokens for the first stage, which the paper does not have. The first `dense_layers` layers keep
    and read everything (2 for LongChat in the paper). In a conversation, later turns keep what the first turn left; the
    official code applies SnapKV to that again at every turn.
    """

    differs = (
        "The accuracy code floors the first stage at 2 M tokens (`floor_2m`); the paper and the speed code "
        "do not. Budgets that cover prompt and answer take the dense path here; the official code still "
        "halves them. The speed code drops the last prompt token and misplaces the first appended ones; "
        "kvbench does not."
    )
    source = "Behnam et al. 2025, arXiv 2502.14051v3, sections 3.3-3.6; window 32 and kernel 63 are official"
    budget_meaning = (
        "traffic t per step in tokens: t / 2 for scoring, t / 2 attended; the cache keeps S / c^split, S being the "
        "whole prompt and M, of which M are for new tokens"
    )
    bytes_formula = (
        "2 * keep * D * element + (keep + M if page == 1 else 2 * ceil((keep + M) / page)) * D * element; "
        "keep = C1 - M"
    )

    version = 2
    positive = ("window", "kernel")

    window: int = 32
    kernel: int = 63
    split: Literal["adaptive"] | float = "adaptive"
    floor_2m: bool = False
    pin_recent: int = 0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split != "adaptive" and not 0 <= float(self.split) <= 1:
            raise UserError(f"split: {self.split} is neither adaptive nor in [0, 1]")

    def parts(self) -> tuple[Eviction, Selection]:
        return SnapKV(window=self.window, kernel=self.kernel), HSA(pin_recent=self.pin_recent)

    def resolve(self, shape: Shape, budget: Budget | None) -> Resolved:
        if budget is None:
            raise UserError("budget: rocketkv needs budget.tokens or budget.ratio")
        eviction, selection = self.parts()
        traffic, total = budget.of(shape.compressed), shape.compressed + shape.max_new_tokens
        if traffic >= total:
            rules = (LayerRule(),) * shape.num_layers
            return Resolved(
                eviction=eviction,
                selection=selection,
                format=self.format,
                rules=rules,
                ratio=budget.ratio,
                covers_prompt=True,
                dense=self.lossless,
            )
        whole = total + shape.fed
        room = capacity(whole, traffic, None if self.split == "adaptive" else float(self.split))
        if self.floor_2m:
            room = max(room, min(2 * shape.max_new_tokens, whole))
        keep = max(room - shape.max_new_tokens, min(self.window, shape.compressed), 1)
        notes = () if keep == room - shape.max_new_tokens else ("kept raised to the observation window",)
        page, channels = split_traffic(keep + shape.max_new_tokens, traffic, shape.head_dim)
        rule = LayerRule(
            keep=keep if keep < shape.compressed else None, read=max(1, traffic // 2) + self.pin_recent
        )
        rules = tuple(LayerRule() if n < self.dense_layers else rule for n in range(shape.num_layers))
        hsa = HSA(page=page, channels=channels, pin_recent=self.pin_recent)
        return Resolved(
            eviction=eviction, selection=hsa, format=self.format, rules=rules, ratio=budget.ratio, notes=notes
        )
