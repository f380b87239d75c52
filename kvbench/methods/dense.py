"""No compression."""

from dataclasses import dataclass

from kvbench.methods.composite import Composite
from kvbench.methods.registry import register


@register("dense")
@dataclass(frozen=True, kw_only=True)
class Dense(Composite):
    """Keeps and reads everything: the baseline of all other methods."""

    source = "-"
    budget_meaning = "none"
    bytes_formula = "2 * T * D * element"
