"""The price file: its records, and how they are read."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from kvbench.claude.request import Usage

DAY = 86_400
COLUMNS = ("base", "write_5m", "write_1h", "read", "output")


def date_of(day: int) -> datetime.date:
    """The date of a day since the epoch."""
    return datetime.date(1970, 1, 1) + datetime.timedelta(days=day)


@dataclass(frozen=True, slots=True)
class Rates:
    """Nano-dollars per token by billing class (1 USD per million tokens = 1,000)."""

    base: int
    write_5m: int
    write_1h: int
    read: int
    output: int

    def input_cost(self, usage: Usage) -> int:
        """Nano-dollars of the input tokens, before multipliers."""
        return (
            self.base * usage.uncached
            + self.write_5m * usage.write_5m
            + self.write_1h * usage.write_1h
            + self.read * usage.read
        )


@dataclass(frozen=True, slots=True)
class Row:
    """Prices of a model from some day onwards.

    Attributes:
        first_day: first day of validity (days since the epoch), None for always.
        rates: the standard prices.
        above: prompts with more input tokens than this pay `long_rates` on every token.
        long_rates: long-prompt prices, None if there are none.
        verified: the long-prompt prices have a primary source.
        source: keys into the file's `sources`.
    """

    first_day: int | None
    rates: Rates
    above: int
    long_rates: Rates | None
    verified: bool
    source: str


@dataclass(frozen=True, slots=True)
class Fast:
    """The fast mode of a model while it is offered.

    Attributes:
        first_day: first day (since the epoch), None for always.
        until: day from which there is none, None if there is one still.
        base, output: nano-dollars per token.
        then: what a request for it gets after it: "error", or "standard" = the usual speed at the usual price.
    """

    first_day: int | None
    until: int | None
    base: int
    output: int
    then: Literal["error", "standard"] = "error"


@dataclass(frozen=True, slots=True)
class ModelPrices:
    """Prices and properties of one model; rows are oldest first. `regional`: endpoints of a region cost more."""

    rows: tuple[Row, ...]
    minimums: tuple[tuple[int | None, int | None], ...]
    fast: Fast | None
    us_inference: bool
    regional: bool
    tool_prompt: Mapping[str, int]
    reads_limited: bool

    def fast_at(self, t: float) -> Fast | None:
        """The fast mode at a time, None if there is none."""
        if self.fast is None:
            return None
        early = self.fast.first_day is not None and t // DAY < self.fast.first_day
        late = self.fast.until is not None and t // DAY >= self.fast.until
        return None if early or late else self.fast

    def falls_back(self, t: float) -> bool:
        """Whether a request for the fast mode is served, and priced, at the usual speed."""
        fast = self.fast
        return (
            fast is not None and fast.then == "standard" and fast.until is not None and t // DAY >= fast.until
        )

    def fast_days(self, t: float) -> str:
        """For messages: since or until when there is a fast mode."""
        fast = self.fast
        if fast is None or (fast.first_day is None and fast.until is None):
            return ""
        if fast.first_day is not None and t // DAY < fast.first_day:
            return f" before {date_of(fast.first_day)}"
        return f" from {date_of(fast.until)} on" if fast.until is not None else ""


def _nano(value: Any) -> int:
    """Converts USD per million tokens to whole nano-dollars per token."""
    nano = Decimal(str(value)) * 1000
    if nano != int(nano) or nano < 0:
        raise ArithmeticError(f"{value} is not a whole number of nano-dollars per token")
    return int(nano)


def _rates(entry: Mapping[str, Any]) -> Rates:
    return Rates(*(_nano(entry[column]) for column in COLUMNS))


def _day(entry: Mapping[str, Any]) -> int | None:
    return _days(entry.get("from"))


def _days(date: datetime.date | None) -> int | None:
    return None if date is None else (date - datetime.date(1970, 1, 1)).days


def read_model(entry: Mapping[str, Any], sources: Mapping[str, Any]) -> ModelPrices:
    """Reads a model's entry.

    Raises:
        KeyError, TypeError, AttributeError, ArithmeticError: a field is missing, or is not what it should be.
    """
    rows = []
    for price in entry["prices"]:
        long = price.get("long_prompt")
        check_source(price, sources)
        rows.append(
            Row(
                _day(price),
                _rates(price),
                long["above"] if long else 0,
                _rates(long) if long else None,
                bool(long and long["verified"]),
                price["source"],
            )
        )
        if long:
            check_source(long, sources)
    for minimum in entry["minimum"]:
        check_source(minimum, sources)
    fast = entry.get("fast")
    if fast:
        check_source(fast, sources)
    tool_prompt = entry.get("tool_prompt")
    if tool_prompt:
        check_source(tool_prompt, sources)
    return ModelPrices(
        tuple(sorted(rows, key=lambda row: row.first_day or 0)),
        _ordered([(_day(minimum), minimum["tokens"]) for minimum in entry["minimum"]]),
        _fast(fast) if fast else None,
        bool(entry.get("us_inference")),
        bool(entry.get("regional", True)),
        {name: int(tool_prompt[name]) for name in ("auto", "any")} if tool_prompt else {},
        bool(entry.get("reads_limited")),
    )


def _fast(entry: Mapping[str, Any]) -> Fast:
    then = entry.get("then", "error")
    if then not in ("error", "standard"):
        raise KeyError(f"fast.then={then}: allowed are error, standard")
    return Fast(_day(entry), _days(entry.get("until")), _nano(entry["base"]), _nano(entry["output"]), then)


def _ordered(rows: Sequence[tuple[int | None, int | None]]) -> tuple[tuple[int | None, int | None], ...]:
    return tuple(sorted(rows, key=lambda row: row[0] or 0))


def check_source(entry: Mapping[str, Any], sources: Mapping[str, Any]) -> None:
    """Checks that an entry's sources are listed.

    Raises:
        KeyError: one is not.
    """
    for key in entry["source"].split():
        if key not in sources:
            raise KeyError(f"source {key} is not listed under sources")
