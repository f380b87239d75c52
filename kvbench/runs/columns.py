"""Many rows by field, in little memory."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Hashable, Mapping
from typing import Any

import pandas as pd


class Columns:
    """Rows by field; of several rows of a cell the first one counts. Equal values are one object, so leave them alone.

    Args:
        without: fields that are left out.
    """

    def __init__(self, without: Container[str] = ()) -> None:
        self._without = without
        self._fields: dict[str, list[Any]] = {}
        self._seen: set[str] = set()
        self._same: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, row: Mapping[str, Any]) -> None:
        """One more row; it has a `cell`."""
        if row["cell"] in self._seen:
            return
        count = len(self._seen)
        self._seen.add(row["cell"])
        for name, value in row.items():
            if name in self._without:
                continue
            field = self._fields.setdefault(name, [])
            # rows before it had no such field
            field += [math.nan] * (count - len(field))
            field.append(value if isinstance(value, float) else self._shared(value))

    def _shared(self, value: Any) -> Any:
        if isinstance(value, str | int):
            # True is equal to 1
            return self._same.setdefault((type(value), value), value)
        if isinstance(value, list):
            value = [self._shared(item) for item in value]
        if isinstance(value, dict | list):
            return self._same.setdefault((type(value), json.dumps(value)), value)
        return value

    def __getitem__(self, name: str) -> list[Any]:
        """The values of a field, NaN where a row has none."""
        field = self._fields.get(name, [])
        return field + [math.nan] * (len(self) - len(field))

    def frame(self) -> pd.DataFrame:
        """A row per cell."""
        return pd.DataFrame({name: self[name] for name in self._fields})
