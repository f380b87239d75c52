"""List prices and cache minimums by model and date, and the cost of a request in integer nano-dollars."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Protocol

from kvbench.claude.names import API, FOUNDRY, Name, parse_name
from kvbench.claude.price_file import DAY, ModelPrices, Rates, Row, check_source, date_of, read_model
from kvbench.claude.request import Usage
from kvbench.config.errors import UserError
from kvbench.config.reading import yaml_file

NANO = 1_000_000_000


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
        self._found: dict[str, tuple[ModelPrices, Name]] = {}
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
                content = yaml_file(file, f"prices: {file.name}")
                for name, entry in content["models"].items():
                    models[name] = read_model(entry, content["sources"])
                    names.update((parse_name(id).model, name) for id in (name, *entry.get("ids", ())))
                for name, entry in content.get("multipliers", {}).items():
                    multipliers[name] = Decimal(str(entry["times"]))
                for name, entry in content.get("server_tools", {}).items():
                    check_source(entry, content["sources"])
                    tools[name] = int(Decimal(str(entry["usd"])) * NANO)
            except UserError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
                detail = " ".join(str(error).split())
                raise UserError(f"prices: {file.name}: {type(error).__name__}: {detail}") from error
        return cls(models, names, multipliers, tools)

    def models(self) -> list[str]:
        """Canonical names of all models."""
        return sorted(self._models)

    def resolve(self, model: str) -> str:
        """One form for all forms of a model id: its canonical name, after platform and region where they are known.

        Raises:
            UserError: unknown id; the message names the nearest ones.
        """
        return str(self._find(model)[1])

    def _find(self, model: str) -> tuple[ModelPrices, Name]:
        """The entry of a model, and its canonical name with platform and region."""
        found = self._found.get(model)
        if found is None:
            parsed = parse_name(model)
            name = self._names.get(parsed.model)
            if name is None:
                near = difflib.get_close_matches(parsed.model, self._models, n=3, cutoff=0.5)
                names = ", ".join(near or sorted(self._models))
                raise UserError(f"model={model}: no prices for this model; nearest are {names}")
            found = self._found[model] = self._models[name], Name(name, parsed.platform, parsed.region)
        return found

    def minimum(self, model: str, t: float, unknown: int = 512) -> int:
        """Smallest cacheable prefix in tokens.

        Args:
            model: model id.
            t: time of the request, seconds since the epoch.
            unknown: minimum of models without a published one.
        """
        key = (model, int(t // DAY))
        if key not in self._minimum:
            rows = self._find(model)[0].minimums
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
        return self._find(model)[0].tool_prompt.get(choice, 0)

    def takes_geo(self, model: str) -> bool:
        """Whether a model takes `inference_geo`: not where a cloud's endpoint is the place.

        Raises:
            UserError: unknown model.
        """
        found, name = self._find(model)
        return found.us_inference and name.platform in (API, FOUNDRY)

    def has_fast(self, model: str, t: float) -> bool:
        """Whether a request for the fast mode is accepted at a time, at whatever speed it is served.

        Raises:
            UserError: unknown model.
        """
        found, name = self._find(model)
        return name.platform == API and (found.fast_at(t) is not None or found.falls_back(t))

    def served_speed(self, model: str, t: float, speed: str) -> str:
        """The speed at which a request for one is served: some models serve "fast" as "standard".

        Raises:
            UserError: unknown model.
        """
        return "standard" if speed == "fast" and self._find(model)[0].falls_back(t) else speed

    def reads_limited(self, model: str) -> bool:
        """Whether cache reads count towards the limit of input tokens per minute (R23).

        Raises:
            UserError: unknown model.
        """
        return self._find(model)[0].reads_limited

    def row(self, model: str, t: float) -> Row:
        """The price row of a model at a time.

        Raises:
            UserError: unknown model, or a date before the model's first price.
        """
        key = (model, int(t // DAY))
        row = self._rates.get(key)
        if row is None:
            rows = self._find(model)[0].rows
            held = [row for row in rows if row.first_day is None or row.first_day <= key[1]]
            if not held:
                first = date_of(rows[0].first_day or 0)
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
        if request.batch or request.geo or request.speed or self._find(request.model)[1].region:
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
        model, name = self._find(request.model)
        factor = Decimal(1)
        if request.batch:
            factor *= self._multiplier("batch")
        if request.geo == "us" and model.us_inference and name.platform in (API, FOUNDRY):
            factor *= self._multiplier("us_inference")
        if name.region and model.regional:
            factor *= self._multiplier("us_gov" if name.region.startswith("us-gov") else "regional")
        out_factor = factor
        if request.speed == "fast" and not model.falls_back(request.t):
            fast = model.fast_at(request.t) if name.platform == API else None
            if fast is None:
                raise UserError(f"speed=fast: {request.model} has no fast mode{model.fast_days(request.t)}")
            # cache multipliers apply to the fast base price as well
            factor *= Decimal(fast.base) / rates.base
            out_factor *= Decimal(fast.output) / rates.output
        elif request.speed not in ("", "standard", "fast"):
            raise UserError(f"speed={request.speed}: allowed are standard, fast")
        return factor, out_factor

    def _multiplier(self, name: str) -> Decimal:
        found = self._multipliers.get(name)
        if found is None:
            raise UserError(f"prices: multipliers.{name} is missing")
        return found


class NoPrices(PriceBook):
    """For traces that are read for their prompts and times alone: it knows every model, and nothing costs anything."""

    def __init__(self) -> None:
        """No prices."""
        super().__init__({}, {}, {}, {})

    def resolve(self, model: str) -> str:
        """One form for all forms of a model id."""
        return str(parse_name(model))

    def minimum(self, model: str, t: float, unknown: int = 512) -> int:
        """The given minimum."""
        return unknown

    def tool_prompt(self, model: str, choice: str) -> int:
        """None."""
        return 0

    def cost(self, request: Terms, usage: Usage, *, unverified: bool = False) -> tuple[int, int]:
        """Nothing."""
        return 0, 0


def _rounded(value: Decimal) -> int:
    return int((value + Decimal("0.5")) // 1)


def dollars(nano: int, places: int = 6) -> str:
    """Nano-dollars as a decimal number of dollars, rounded half up."""
    return f"{Decimal(nano).scaleb(-9).quantize(Decimal(1).scaleb(-places), rounding='ROUND_HALF_UP')}"
