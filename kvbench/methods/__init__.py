"""Methods: one file each; `base` holds the roles, `registry` the names."""

from kvbench.methods.base import (
    Budget,
    Eviction,
    Format,
    Kept,
    LayerRule,
    LayerSnapshot,
    Method,
    Quota,
    Resolved,
    Selection,
    Shape,
)
from kvbench.methods.registry import build, filled, register, registry

__all__ = [
    "Budget", "Eviction", "Format", "Kept", "LayerRule", "LayerSnapshot", "Method", "Quota", "Resolved", "Selection",
    "Shape", "build", "filled", "register", "registry",
]  # fmt: skip
