"""What a declared field is, and the check of rows against the declarations."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from kvbench.config.numbers import all_finite

#: version of the rows' form, in every line of the store; lines without one are version 1
SCHEMA = 2


@dataclass(frozen=True)
class Field:
    """A field of a row, or a column of summary.csv.

    Attributes:
        name: its name; `parent.name` for a key of a nested field.
        type: an annotation, as `int`, `float | None`, `list[float]` or `dict[str, float]`. A float may be a whole
            number and is finite: what is missing is null. `object` is any value, its numbers finite, and a bare `dict`
            has exactly its declared keys.
        unit: "" for none.
        meaning: what it says, as the page docs/columns.md shows it.
        kinds: kinds of row that have it.
        over: how a column of summary.csv follows from the cells' field of its name: "mean", "median", or "" for
            columns with a computation of their own.
    """

    name: str
    type: Any
    unit: str
    meaning: str
    kinds: tuple[str, ...] = ()
    over: str = ""

    @property
    def type_name(self) -> str:
        """The type as it is written in code."""
        return self.type.__name__ if isinstance(self.type, type) else str(self.type)

    @property
    def is_closed(self) -> bool:
        """Whether all keys of a nested field are declared."""
        return dict in (self.type, *get_args(self.type))


def kind_of(row: Mapping[str, Any]) -> str:
    """The kind of a row: its `row`, else `accuracy` or `efficiency` by its `timing`.

    Raises:
        TypeError: the row has neither.
    """
    kind = row.get("row") or {"amortised": "accuracy", "isolated": "efficiency"}.get(row.get("timing", ""))
    if not isinstance(kind, str):
        raise TypeError("row: has neither `row` nor a known `timing`, so that its kind is unknown")
    return kind


def problems(row: Mapping[str, Any], fields: Iterable[Field]) -> list[str]:
    """One sentence per field of the row that is not declared for its kind, or has another type.

    Args:
        row: plain JSON values.
        fields: all declarations.
    """
    kind = kind_of(row)
    declared = {field.name: field for field in fields if kind in field.kinds}
    return [f"{kind} row: {problem}" for problem in _problems(row, declared)]


def _problems(
    row: Mapping[str, Any], declared: Mapping[str, Field], parent: Field | None = None
) -> Iterator[str]:
    for key, value in row.items():
        name = f"{parent.name}.{key}" if parent else key
        field = declared.get(name)
        if field is None:
            if parent is None or parent.is_closed:
                yield f"{name} is not declared, see kvbench/runs/fields.py"
        elif not all_finite(value):
            yield f"{name}: {value!r} is not finite"
        elif not fits(value, field.type):
            yield f"{name}: {value!r} is not {field.type_name}"
        elif isinstance(value, Mapping):
            yield from _problems(value, declared, field)


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value has the type of an annotation; see `Field.type`. Does not ask whether it is finite."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is list:
        return isinstance(value, list | tuple) and all(fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, args[1]) for item in value.values())
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    return isinstance(value, kind)
