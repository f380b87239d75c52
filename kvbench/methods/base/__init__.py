"""The contract of a method: an eviction, a selection and a format under one budget rule.

Shape letters: R rows of a batch, T tokens, H KV heads, G query heads per KV head, Q = H * G, D head dimension,
W window, K kept tokens, M room for appended tokens, P pages, N slots read at a step.
"""

from kvbench.methods.base.component import BY_MODE, Component
from kvbench.methods.base.eviction import Eviction, KeepAll
from kvbench.methods.base.format import Format, Native, Stored
from kvbench.methods.base.method import Method, Resolved
from kvbench.methods.base.selection import ReadAll, Selection
from kvbench.methods.base.step_view import StepView
from kvbench.methods.budget import Budget, LayerRule, Quota, Shape
from kvbench.methods.snapshot import Kept, LayerSnapshot

__all__ = [
    "BY_MODE", "Budget", "Component", "Eviction", "Format", "KeepAll", "Kept", "LayerRule", "LayerSnapshot",
    "Method", "Native", "Quota", "ReadAll", "Resolved", "Selection", "Shape", "StepView", "Stored",
]  # fmt: skip
