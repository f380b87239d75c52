"""Both layers on the same sessions: prices, capacities, break-even, and its sensitivity."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvbench.claude.placements import none
from kvbench.claude.prices import PriceBook
from kvbench.claude.rag.config import build_runner, save_counts
from kvbench.claude.request import Request
from kvbench.claude.simulate import Trace
from kvbench.claude.traces.open import FileTrace, open_trace
from kvbench.claude.traces.recorded import RecordedTrace
from kvbench.config.errors import UserError
from kvbench.experiments.two_layer import claude_api
from kvbench.experiments.two_layer.breakeven import BreakEven, Fleet, break_even
from kvbench.experiments.two_layer.config import TwoLayerConfig
from kvbench.experiments.two_layer.sessions import IsolatedSessions, Session, sessions
from kvbench.runs.progress import ProgressFactory, staged

if TYPE_CHECKING:
    from kvbench.experiments.two_layer.hosted import CopyCost, Host, ServingCost

# for progress
STAGES = ("the sessions", "prices at the API", "prices on the device", "other rents, lengths and models")


@dataclass(frozen=True)
class RentCase:
    """Break-even for one rent and utilisation.

    Attributes:
        usd_per_hour: rent.
        utilisation: share of the day that a device may be busy.
        capacity: sessions per day and device.
        even: break-even with the cheapest placement.
    """

    usd_per_hour: float
    utilisation: float
    capacity: int
    even: BreakEven


@dataclass(frozen=True)
class LengthCase:
    """Costs with longer answers.

    Attributes:
        times: multiple of the answer length.
        tokens: generated tokens per session.
        priced: costs at the API.
        served: costs on devices.
    """

    times: int
    tokens: float
    priced: Sequence[claude_api.PlacementCost]
    served: Sequence[ServingCost]


@dataclass(frozen=True)
class ModelCase:
    """The sessions on another Claude model.

    Attributes:
        model: its name.
        rates: USD per million tokens: input, cache read, output.
        since: date from which these prices hold, None if they have no date.
        cheapest: the cheapest placement.
        even: break-even with it.
        note: why it could not be priced, empty if it could.
    """

    model: str
    rates: tuple[float, float, float] | None = None
    since: datetime.date | None = None
    cheapest: claude_api.PlacementCost | None = None
    even: BreakEven | None = None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The contents of the report; parts of a layer that is not configured are empty.

    Attributes:
        recorded: the sessions.
        sources: sources of their token counts.
        models: models in the sessions.
        problems: defects of the trace.
        priced: layer 1.
        served: layer 2.
        title: title of model and device.
        rent: whose price the rent is.
        copies: what it takes to decode from compressed copies.
        without_prefix: methods that can use no prefix cache, with the reason.
        rent_cases: sensitivity to rent and utilisation, of the cheapest way to serve.
        length_cases: sensitivity to the length of the answers.
        model_cases: sensitivity to the Claude model, against the cheapest way to serve.
    """

    recorded: Sequence[Session]
    sources: Sequence[str]
    models: Sequence[str]
    problems: Sequence[str]
    priced: Sequence[claude_api.PlacementCost]
    served: Sequence[ServingCost]
    title: str
    rent: str
    copies: Sequence[CopyCost]
    without_prefix: Sequence[str]
    rent_cases: Sequence[RentCase]
    length_cases: Sequence[LengthCase]
    model_cases: Sequence[ModelCase]

    @property
    def plain(self) -> claude_api.PlacementCost:
        """The API without cache_control."""
        return next(found for found in self.priced if found.name == "none")

    @property
    def cheapest(self) -> claude_api.PlacementCost:
        """The cheapest placement at the API that can be chosen in advance."""
        return claude_api.cheapest(self.priced)

    @property
    def best(self) -> ServingCost:
        """The way to serve with the lowest cost per session on a full device."""
        return cheapest_way(self.served)


def cheapest_way(served: Sequence[ServingCost]) -> ServingCost:
    """The way to serve with the lowest cost per session on a full device."""
    return min(served, key=lambda found: found.fleet.usd_per_session)


def compare(cfg: TwoLayerConfig, progress: ProgressFactory) -> Comparison:
    """Runs or reads the sessions and prices them.

    Args:
        cfg: the configuration.
        progress: makes the progress display, with a line per entry of `STAGES`.

    Raises:
        UserError: anything wrong in the configuration or the trace.
    """
    prices = PriceBook.load(cfg.prices)
    # mistakes surface before the workload runs
    models = [prices.resolve(name) for name in cfg.claude_models]
    with staged(progress, STAGES) as begin:
        return _compare(cfg, prices, models, begin)


def _compare(
    cfg: TwoLayerConfig, prices: PriceBook, models: Sequence[str], begin: Callable[[], None]
) -> Comparison:
    host = None
    if cfg.layer != "api":
        # loads torch
        from kvbench.experiments.two_layer.hosted import Host

        host = Host(cfg)
    begin()
    source = _trace(cfg, prices)
    trace = IsolatedSessions(source)
    requests = list(trace.requests(cfg.switches))
    recorded = sessions(requests)
    begin()
    priced = [] if cfg.layer == "model" else claude_api.price(trace, cfg, prices, len(recorded))
    begin()
    served = host.serve(recorded) if host else []
    as_recorded = LengthCase(1, _generated(recorded), priced, served)
    begin()
    rent_cases: list[RentCase] = []
    length_cases: list[LengthCase] = []
    model_cases: list[ModelCase] = []
    if host and priced:
        fleet = cheapest_way(served).fleet
        model_cases = [_on_model(cfg, trace, requests, prices, name, fleet) for name in models]
        rent_cases = _rent_cases(cfg, host, recorded, as_recorded)
        length_cases = [
            as_recorded if times == 1 else _longer(cfg, host, trace, prices, times) for times in cfg.outputs
        ]
    return Comparison(
        recorded=recorded,
        sources=sorted({request.source for request in requests}),
        models=sorted({request.model for request in requests}),
        problems=source.problems.lines,
        priced=priced,
        served=served,
        title=_title(cfg, host) if host else "",
        rent=host.rent_note if host else "",
        copies=host.copies(recorded) if host else [],
        without_prefix=host.without_prefix if host else [],
        rent_cases=rent_cases,
        length_cases=length_cases,
        model_cases=model_cases,
    )


def _title(cfg: TwoLayerConfig, host: Host) -> str:
    weights = "" if cfg.weight_element is None else f", {8 * cfg.weight_element:g}-bit weights,"
    return f"{host.shape.name}{weights} on {host.device.title}"


def _trace(cfg: TwoLayerConfig, prices: PriceBook) -> FileTrace:
    if cfg.trace is not None:
        # serving alone needs no price
        return open_trace(cfg.trace, None if cfg.layer == "model" else prices, model=cfg.claude_model)
    runner = build_runner(cfg, prices)
    runner.run(cfg.layout, none, label=cfg.layout)
    save_counts(cfg, runner)
    return RecordedTrace(Path(runner.folder) / f"{cfg.layout}.jsonl", prices)


def _rent_cases(
    cfg: TwoLayerConfig, host: Host, recorded: Sequence[Session], base: LengthCase
) -> list[RentCase]:
    best, price = cheapest_way(base.served), claude_api.cheapest(base.priced).usd
    # at a given load there is nothing that the utilisation decides
    loads = cfg.utilisations if cfg.sessions_per_day is None else (None,)
    rent_cases = []
    for utilisation in loads:
        found = best if utilisation is None else host.serve(recorded, utilisation, only=best.name)[0]
        for times in cfg.rents:
            fleet = Fleet(host.usd_per_hour * times, found.fleet.capacity)
            share = utilisation or found.busy
            rent_cases.append(RentCase(fleet.usd_per_hour, share, fleet.capacity, break_even(price, fleet)))
    return rent_cases


def _on_model(
    cfg: TwoLayerConfig,
    trace: Trace,
    requests: Sequence[Request],
    prices: PriceBook,
    model: str,
    fleet: Fleet,
) -> ModelCase:
    sent = max(request.t for request in requests)
    count = len({request.session for request in requests})
    try:
        row = prices.row(model, sent)
        # the planned placement is not used in this comparison
        priced = claude_api.price(
            claude_api.OtherModel(trace, model), replace(cfg, plan=False), prices, count
        )
    except UserError as error:
        # a model can be younger than a trace, or lack what a request asks for
        return ModelCase(model, note=str(error))
    cheapest = claude_api.cheapest(priced)
    since = None if row.first_day is None else datetime.date(1970, 1, 1) + datetime.timedelta(row.first_day)
    rates = (row.rates.base / 1000, row.rates.read / 1000, row.rates.output / 1000)
    return ModelCase(model, rates, since, cheapest, break_even(cheapest.usd, fleet))


def _longer(cfg: TwoLayerConfig, host: Host, trace: Trace, prices: PriceBook, times: int) -> LengthCase:
    longer = claude_api.LongerAnswers(trace, times)
    recorded = sessions(longer.requests(cfg.switches))
    # the planned placement is not used in this comparison
    priced = claude_api.price(longer, replace(cfg, plan=False), prices, len(recorded))
    return LengthCase(times, _generated(recorded), priced, host.serve(recorded))


def _generated(recorded: Sequence[Session]) -> float:
    """Generated tokens per session."""
    return sum(request.output for session in recorded for request in session) / len(recorded)
