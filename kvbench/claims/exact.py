"""Sums and means of printed numbers, as exact fractions: they do not depend on the order of their terms."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def exact(value: float) -> Fraction:
    """The number that a float's shortest digits spell: for a printed number, the one printed."""
    return Fraction(str(value))


def total(values: Sequence[float], weights: Sequence[int]) -> Fraction:
    """Weighted sum."""
    return sum((exact(v) * w for v, w in zip(values, weights, strict=True)), Fraction())


def mean(values: Sequence[float]) -> Fraction:
    """Mean."""
    return total(values, [1] * len(values)) / len(values)
