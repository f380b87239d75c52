"""Methods: the roles under one budget rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kvbench.methods.base.component import Component
from kvbench.methods.base.eviction import Eviction
from kvbench.methods.base.format import Format, Native
from kvbench.methods.base.selection import Selection
from kvbench.methods.budget import Budget, LayerRule, Shape


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A method with its budget resolved for one prompt length.

    Attributes:
        eviction: what is evicted after prefill.
        selection: what a decode step reads; its parameters are final.
        format: how K and V are stored.
        rules: one per layer.
        ratio: the budget as a fraction retained, None for a budget in tokens.
        covers_prompt: whether the budget keeps and reads the whole prompt.
        dense: whether keep and read cover prompt and new tokens, so that the engine takes the dense path.
        notes: remarks for the reader of the result.
        retains: whether the whole prompt stays stored in addition to the kept tokens (for later turns).
    """

    eviction: Eviction
    selection: Selection
    format: Format
    rules: tuple[LayerRule, ...]
    ratio: str | None = None
    covers_prompt: bool = False
    dense: bool = False
    notes: tuple[str, ...] = ()
    retains: bool = False

    def format_of(self, layer: int) -> Format:
        """The format of one layer, counted from 0."""
        return self.format.in_layer(layer, len(self.rules))


@dataclass(frozen=True, kw_only=True)
class Method(Component):
    """What a cell runs: an eviction, a selection and a format, and the rule that spends the budget."""

    family = "method"

    format: Format = field(default_factory=Native)

    @property
    def needs_budget(self) -> bool:
        """Whether the method uses a budget."""
        return True

    @property
    def lossless(self) -> bool:
        """Whether the format stores K and V as the model computed them."""
        return isinstance(self.format, Native)

    def parts(self) -> tuple[Eviction, Selection]:
        """The eviction and the selection, for names and window; `resolve` may refine their parameters."""
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[str]:
        """Further contents of the snapshot, see `Eviction.needs`."""
        return self.parts()[0].needs

    @property
    def on_turn(self) -> Literal["keep", "filter"]:
        """What later turns of a conversation use: the tokens the first turn kept, or all tokens, filtered each turn."""
        return "keep"

    def role_params(self) -> dict[str, Any]:
        """The parameters of eviction and selection, without those of the format."""
        return {name: value for name, value in self.params().items() if name != "format"}

    def describe(self) -> dict[str, Any]:
        """Names of the three roles and all parameters, for records and cell ids."""
        eviction, selection = self.parts()
        params = self.role_params()
        if self.format.params():
            params["format"] = self.format.params()
        return {
            "eviction": eviction.name,
            "selection": selection.name,
            "format": self.format.name,
            "params": params,
        }

    def versions(self) -> list[list[Any]]:
        """Names and versions of everything whose change must invalidate stored cells."""
        return [[type(part).__qualname__, part.version] for part in (self, *self.parts(), self.format)]

    def resolve(self, shape: Shape, budget: Budget | None) -> Resolved:
        """Apply the budget rule to one prompt length."""
        raise NotImplementedError
