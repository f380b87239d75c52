"""Numbers that must be finite: NaN and infinities raise, and JSON holds none of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


class NotFiniteError(ArithmeticError):
    """A number that must be finite is NaN or infinite."""


def finite(value: float, what: str) -> float:
    """The value.

    Args:
        value: any number.
        what: its name, for the error.

    Raises:
        NotFiniteError: it is NaN or infinite.
    """
    if not math.isfinite(value):
        raise NotFiniteError(f"{what} is {value}")
    return value


def clamped(value: float, low: float, high: float, slack: float, what: str) -> float:
    """The value between two bounds, which it may exceed by a rounding error.

    `max(0.0, value)` would turn NaN into 0.0.

    Args:
        value: any number.
        low: lower bound.
        high: upper bound.
        slack: largest rounding error.
        what: its name, for the error.

    Raises:
        NotFiniteError: it is NaN or infinite.
        ArithmeticError: it is farther from the bounds than `slack`.
    """
    finite(value, what)
    if not low - slack <= value <= high + slack:
        raise ArithmeticError(f"{what} is {value}, which is not in [{low}, {high}]")
    return min(max(value, low), high)


def all_finite(value: Any) -> bool:
    """Whether no number in a plain JSON value is NaN or infinite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(all_finite, value.values()))
    return all(map(all_finite, value)) if isinstance(value, list | tuple) else True


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON; NaN, Infinity and numbers too large for a float are not.
    """
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large")
    return value


def _refused(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")
