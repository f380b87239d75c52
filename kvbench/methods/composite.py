"""Any eviction with any selection, under one budget rule."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from kvbench.config.errors import UserError
from kvbench.methods.base import Eviction, KeepAll, Method, ReadAll, Resolved, Selection
from kvbench.methods.budget import Budget, LayerRule, Quota, Shape


@dataclass(frozen=True, kw_only=True)
class Composite(Method):
    """Any eviction with any selection.

    An eviction alone keeps `budget` tokens of the prompt (window and sinks included) and reads all it kept. A selection
    alone keeps everything and reads `budget`. A composition keeps `keep` tokens (or the fraction `keep` of the prompt),
    `budget` if `keep` is not given, and reads `budget` of them.
    """

    eviction: Eviction = field(default_factory=KeepAll)
    selection: Selection = field(default_factory=ReadAll)
    keep: int | float | None = None

    def __post_init__(self) -> None:
        if self.keep is not None:
            if not (self.evicts and self.selects):
                raise UserError(
                    "keep: needs an eviction and a selection; with one of them alone, give only the budget"
                )
            tokens = type(self.keep) is int and self.keep >= 1
            if not (tokens or (isinstance(self.keep, float) and 0 < self.keep <= 1)):
                raise UserError(
                    f"keep: {self.keep} is not allowed, give 1 or more tokens, or a fraction up to 1.0"
                )
        if self.eviction.steps and not self.format.rolls:
            raise UserError(
                f"format: {self.format.name} stores tokens in groups, but {self.eviction.name} drops single "
                "tokens while decoding; allowed: every format but int2, int4 and int8"
            )

    @property
    def evicts(self) -> bool:
        return not isinstance(self.eviction, KeepAll)

    @property
    def selects(self) -> bool:
        return not isinstance(self.selection, ReadAll)

    @property
    def needs_budget(self) -> bool:
        return (self.evicts and self.eviction.needs_budget) or self.selects

    def parts(self) -> tuple[Eviction, Selection]:
        return self.eviction, self.selection

    def role_params(self) -> dict[str, Any]:
        if self.evicts and self.selects:
            kept = {} if self.keep is None else {"keep": self.keep}
            return {"eviction": self.eviction.params(), "selection": self.selection.params(), **kept}
        return (self.eviction if self.evicts else self.selection).params()

    def resolve(self, shape: Shape, budget: Budget | None) -> Resolved:
        total = shape.compressed + shape.max_new_tokens
        ratio = None
        if not self.needs_budget:
            keep = read = total
        elif budget is None:
            raise UserError(
                f"budget: {self.eviction.name} x {self.selection.name} needs budget.tokens or budget.ratio"
            )
        else:
            read = budget.of(shape.compressed)
            kept = budget
            if self.keep is not None:
                kept = Budget(self.keep) if isinstance(self.keep, int) else Budget(ratio=str(self.keep))
            keep, ratio = kept.of(shape.compressed), kept.ratio
        quota = Quota(keep, ratio)
        per_layer = [total] * shape.num_layers
        if self.evicts:
            per_layer = self.eviction.layer_tokens(quota, shape)
        selection, per_layer_read = self.selection, None
        if self.selects:
            # the newest token is appended before another one is dropped
            first = max(per_layer) if self.eviction.at_prefill else max(*per_layer, shape.compressed)
            held = first + (self.eviction.interval if self.eviction.steps else shape.max_new_tokens)
            left = dataclasses.replace(shape, compressed=min(held, total) - shape.max_new_tokens)
            selection, per_layer_read = self.selection.resolve(read, left)
        rules = tuple(
            LayerRule(
                keep=n if n < shape.compressed and self.eviction.at_prefill else None,
                read=per_layer_read[layer] if per_layer_read is not None else None,
                hold=n if self.eviction.steps and n < total else None,
            )
            for layer, n in enumerate(per_layer)
        )
        return Resolved(
            eviction=self.eviction,
            selection=selection,
            format=self.format,
            rules=rules,
            ratio=ratio,
            covers_prompt=all(rule == LayerRule() for rule in rules),
            dense=self.lossless and min(per_layer) >= total and (not self.selects or read >= total),
            notes=self.eviction.notes(quota, shape),
        )
