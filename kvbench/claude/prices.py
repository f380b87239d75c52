"""List prices and cache minimums by model and date, and the cost of a request in integer nano-dollars."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import yaml

from kvbench.claude.request import Usage
from kvbench.config.errors import UserError

NANO = 1_000_000_000
DAY = 86_400
COLUMNS = ("base", "write_5m", "write_1h", "read", "output")


class Terms(Protocol):
    """What the price of a call depends on besides its tokens; a `Request` has it."""

    @property
    def model(self) -> str: ...

    @property
    def t(self) -> float: ...

    @property
    def batch(self) -> bool: ...

    @property
    def geo(self) -> str: ...

    @property
    def speed(self) -> str: ...

    @property
    def server_tools(self) -> Mapping[str, int]: ...


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
    """Prices of the fast mode, nano-dollars per token, and the day (since the epoch) from which there is none."""

    base: int
    output: int
    until: int | None


@dataclass(frozen=True, slots=True)
class ModelPrices:
    """Prices and properties of one model; rows are oldest first."""

    rows: tuple[Row, ...]
    minimums: tuple[tuple[int | None, int | None], ...]
    fast: Fast | None
    us_inference: bool
    tool_prompt: Mapping[str, int]
    reads_limited: bool

    def fast_at(self, t: float) -> Fast | None:
        """The fast mode at a time, None if there is none."""
        if self.fast is None or (self.fast.until is not None and t // DAY >= self.fast.until):
            return None
        return self.fast

    def fast_days(self) -> str:
        """For messages: until when there was a fast mode."""
        if self.fast is None or self.fast.until is None:
            return ""
        return f" from {datetime.date(1970, 1, 1) + datetime.timedelta(days=self.fast.until)} on"


class PriceBook:
    """Prices of all models, looked up by model id and time."""

    def __init__(
        self,
        models: Mapping[str, ModelPrices],
        names: Mapping[str, str],
        multipliers: Mapping[str, Decimal],
        server_tools: Mapping[str, int],
    ) -> None:
        """Stores prices.

        Args:
            models: by canonical name.
            names: the canonical name of every id, dated ids too.
            multipliers: by name.
            server_tools: nano-dollars per request of Anthropic's own tools, by the field of the reported usage.
        """
        self._models = models
        self._names = names
        self._multipliers = multipliers
        self._server_tools = server_tools
        self._rates: dict[tuple[str, int], Row] = {}
        self._minimum: dict[tuple[str, int], int | None] = {}

    @classmethod
    def load(cls, path: str | Path | None = None) -> PriceBook:
        """Reads one price file or all files of a folder.

        Args:
            path: a YAML file or a folder of them; the default ships with kvbench.

        Raises:
            UserError: a file is missing or malformed; the message names the file and the key.
        """
        place = Path(path) if path is not None else resources.files("kvbench.conf") / "prices"
        if not place.is_dir() and not place.is_file():
            raise UserError(f"prices={path}: no such file or folder")
        files = [place] if place.is_file() else sorted(place.iterdir(), key=lambda entry: entry.name)
        models: dict[str, ModelPrices] = {}
        names: dict[str, str] = {}
        multipliers: dict[str, Decimal] = {}
        tools: dict[str, int] = {}
        for file in files:
            if not file.name.endswith(".yaml"):
                continue
            try:
                content = yaml.safe_load(file.read_text())
                for name, entry in content["models"].items():
                    models[name] = _model(entry, content["sources"])
                    names.update(dict.fromkeys([name, *entry.get("ids", ())], name))
                for name, entry in content.get("multipliers", {}).items():
                    multipliers[name] = Decimal(str(entry["times"]))
                for name, entry in content.get("server_tools", {}).items():
                    _check_source(entry, content["sources"])
                    tools[name] = int(Decimal(str(entry["usd"])) * NANO)
            except (yaml.YAMLError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
                detail = " ".join(str(error).split())
                raise UserError(f"prices: {file.name}: {type(error).__name__}: {detail}") from error
        return cls(models, names, multipliers, tools)

    def models(self) -> list[str]:
        """Canonical names of all models."""
        return sorted(self._models)

    def resolve(self, model: str) -> str:
        """Canonical name of a model id.

        Raises:
            UserError: unknown id; the message names the nearest ones.
        """
        name = self._names.get(model)
        if name is None:
            near = difflib.get_close_matches(model, self._names, n=3, cutoff=0.5) or sorted(self._models)
            raise UserError(f"model={model}: no prices for this model; nearest are {', '.join(near)}")
        return name

    def minimum(self, model: str, t: float, unknown: int = 512) -> int:
        """Smallest cacheable prefix in tokens.

        Args:
            model: model id.
            t: time of the request, seconds since the epoch.
            unknown: minimum of models without a published one.
        """
        key = (model, int(t // DAY))
        if key not in self._minimum:
            rows = self._models[self.resolve(model)].minimums
            # before its first row, the first row applies: the pages are dated, the models are not
            held = [tokens for day, tokens in rows if day is None or day <= key[1]] or [rows[0][1]]
            self._minimum[key] = held[-1]
        value = self._minimum[key]
        return unknown if value is None else value

    def tool_prompt(self, model: str, choice: str) -> int:
        """Tokens of the prompt that the API adds to requests with tools (R21), 0 if unpublished.

        Args:
            model: model id.
            choice: "auto" (also tool_choice none), "any" (also a named tool), "" for a request without tools.

        Raises:
            UserError: unknown model.
        """
        return self._models[self.resolve(model)].tool_prompt.get(choice, 0)

    def takes_geo(self, model: str) -> bool:
        """Whether a model takes `inference_geo`.

        Raises:
            UserError: unknown model.
        """
        return self._models[self.resolve(model)].us_inference

    def has_fast(self, model: str, t: float) -> bool:
        """Whether a model has a fast mode at a time.

        Raises:
            UserError: unknown model.
        """
        return self._models[self.resolve(model)].fast_at(t) is not None

    def reads_limited(self, model: str) -> bool:
        """Whether cache reads count towards the limit of input tokens per minute (R23).

        Raises:
            UserError: unknown model.
        """
        return self._models[self.resolve(model)].reads_limited

    def row(self, model: str, t: float) -> Row:
        """The price row of a model at a time.

        Raises:
            UserError: unknown model, or a date before the model's first price.
        """
        key = (model, int(t // DAY))
        row = self._rates.get(key)
        if row is None:
            rows = self._models[self.resolve(model)].rows
            held = [row for row in rows if row.first_day is None or row.first_day <= key[1]]
            if not held:
                first = datetime.date(1970, 1, 1) + datetime.timedelta(days=rows[0].first_day or 0)
                raise UserError(f"model={model}: its first price is of {first}, the request is earlier")
            row = self._rates[key] = held[-1]
        return row

    def rates(self, model: str, t: float, total: int, *, unverified: bool = False) -> Rates:
        """Prices of a request of `total` input tokens, cached ones included (R19)."""
        row = self.row(model, t)
        if row.long_rates is not None and total > row.above and (row.verified or unverified):
            return row.long_rates
        return row.rates

    def cost(self, request: Terms, usage: Usage, *, unverified: bool = False) -> tuple[int, int]:
        """Cost of the input and of the output of a request, nano-dollars; its server tools belong to the output.

        Args:
            request: gives model, date, multipliers and server tools.
            usage: tokens by billing class.
            unverified: apply long-prompt prices that have no primary source.

        Raises:
            UserError: unknown model, or fast mode on a model without it.
        """
        rates = self.rates(request.model, request.t, usage.total, unverified=unverified)
        paid, out = rates.input_cost(usage), rates.output * usage.output
        if request.batch or request.geo or request.speed:
            factor, out_factor = self.multipliers(request, rates)
            paid, out = _rounded(paid * factor), _rounded(out * out_factor)
        if request.server_tools:
            out += sum(self._server_tools.get(name, 0) * n for name, n in request.server_tools.items())
        return paid, out

    def multipliers(self, request: Terms, rates: Rates) -> tuple[Decimal, Decimal]:
        """Price factors of the input and the output of a request (R20: they stack).

        Raises:
            UserError: fast mode on a model without it, or an unknown speed.
        """
        model = self._models[self.resolve(request.model)]
        factor = Decimal(1)
        if request.batch:
            factor *= self._multipliers["batch"]
        if request.geo == "us" and model.us_inference:
            factor *= self._multipliers["us_inference"]
        out_factor = factor
        if request.speed == "fast":
            fast = model.fast_at(request.t)
            if fast is None:
                raise UserError(f"speed=fast: {request.model} has no fast mode{model.fast_days()}")
            # cache multipliers apply to the fast base price as well
            factor *= Decimal(fast.base) / rates.base
            out_factor *= Decimal(fast.output) / rates.output
        elif request.speed not in ("", "standard"):
            raise UserError(f"speed={request.speed}: allowed are standard, fast")
        return factor, out_factor


def _rounded(value: Decimal) -> int:
    return int((value + Decimal("0.5")) // 1)


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


def _model(entry: Mapping[str, Any], sources: Mapping[str, Any]) -> ModelPrices:
    rows = []
    for price in entry["prices"]:
        long = price.get("long_prompt")
        _check_source(price, sources)
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
            _check_source(long, sources)
    for minimum in entry["minimum"]:
        _check_source(minimum, sources)
    fast = entry.get("fast")
    if fast:
        _check_source(fast, sources)
    tool_prompt = entry.get("tool_prompt")
    if tool_prompt:
        _check_source(tool_prompt, sources)
    return ModelPrices(
        tuple(sorted(rows, key=lambda row: row.first_day or 0)),
        _ordered([(_day(minimum), minimum["tokens"]) for minimum in entry["minimum"]]),
        Fast(_nano(fast["base"]), _nano(fast["output"]), _days(fast.get("until"))) if fast else None,
        bool(entry.get("us_inference")),
        {name: int(tool_prompt[name]) for name in ("auto", "any")} if tool_prompt else {},
        bool(entry.get("reads_limited")),
    )


def _ordered(rows: Sequence[tuple[int | None, int | None]]) -> tuple[tuple[int | None, int | None], ...]:
    return tuple(sorted(rows, key=lambda row: row[0] or 0))


def _check_source(entry: Mapping[str, Any], sources: Mapping[str, Any]) -> None:
    for key in entry["source"].split():
        if key not in sources:
            raise KeyError(f"source {key} is not listed under sources")


def dollars(nano: int, places: int = 6) -> str:
    """Nano-dollars as a decimal number of dollars, rounded half up."""
    return f"{Decimal(nano).scaleb(-9).quantize(Decimal(1).scaleb(-places), rounding='ROUND_HALF_UP')}"
