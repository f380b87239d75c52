"""Both layers on the same sessions: prices, capacities, break-even, and its sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvbench.claude.placements import none
from kvbench.claude.prices import PriceBook
from kvbench.claude.rag.config import build_runner, save_counts
from kvbench.claude.simulate import Trace
from kvbench.claude.traces.open import FileTrace, open_trace
from kvbench.claude.traces.recorded import RecordedTrace
from kvbench.experiments.two_layer import claude_api
from kvbench.experiments.two_layer.breakeven import BreakEven, Fleet, break_even
from kvbench.experiments.two_layer.config import TwoLayerConfig
from kvbench.experiments.two_layer.sessions import IsolatedSessions, Session, sessions

if TYPE_CHECKING:
    from kvbench.experiments.two_layer.hosted import Host, ServingCost


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
        rent_cases: sensitivity to rent and utilisation, of the cheapest way to serve.
        length_cases: sensitivity to the length of the answers.
    """

    recorded: Sequence[Session]
    sources: Sequence[str]
    models: Sequence[str]
    problems: Sequence[str]
    priced: Sequence[claude_api.PlacementCost]
    served: Sequence[ServingCost]
    title: str
    rent_cases: Sequence[RentCase]
    length_cases: Sequence[LengthCase]

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


def compare(cfg: TwoLayerConfig) -> Comparison:
    """Runs or reads the sessions and prices them.

    Raises:
        UserError: anything wrong in the configuration or the trace.
    """
    prices = PriceBook.load(cfg.prices)
    host = None
    if cfg.layer != "api":
        # built before the workload runs, so that mistakes surface at once; loads torch
        from kvbench.experiments.two_layer.hosted import Host

        host = Host(cfg)
    source = _trace(cfg, prices)
    trace = IsolatedSessions(source)
    requests = list(trace.requests(cfg.switches))
    recorded = sessions(requests)
    priced = [] if cfg.layer == "model" else claude_api.price(trace, cfg, prices, len(recorded))
    served = host.serve(recorded) if host else []
    as_recorded = LengthCase(1, _generated(recorded), priced, served)
    rent_cases: list[RentCase] = []
    length_cases: list[LengthCase] = []
    if host and priced:
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
        rent_cases=rent_cases,
        length_cases=length_cases,
    )


def _title(cfg: TwoLayerConfig, host: Host) -> str:
    weights = "" if cfg.weight_element is None else f", {8 * cfg.weight_element:g}-bit weights,"
    return f"{host.shape.name}{weights} on {host.device.title}"


def _trace(cfg: TwoLayerConfig, prices: PriceBook) -> FileTrace:
    if cfg.trace is not None:
        return open_trace(cfg.trace, prices, model=cfg.claude_model)
    runner = build_runner(cfg, prices)
    runner.run(cfg.layout, none, label=cfg.layout)
    save_counts(cfg, runner)
    return RecordedTrace(Path(runner.folder) / f"{cfg.layout}.jsonl", prices)


def _rent_cases(
    cfg: TwoLayerConfig, host: Host, recorded: Sequence[Session], base: LengthCase
) -> list[RentCase]:
    best, price = cheapest_way(base.served), claude_api.cheapest(base.priced).usd
    rent_cases = []
    for utilisation in cfg.utilisations:
        (found,) = host.serve(recorded, utilisation, only=best.name)
        for times in cfg.rents:
            fleet = Fleet(host.usd_per_hour * times, found.fleet.capacity)
            rent_cases.append(
                RentCase(fleet.usd_per_hour, utilisation, fleet.capacity, break_even(price, fleet))
            )
    return rent_cases


def _longer(cfg: TwoLayerConfig, host: Host, trace: Trace, prices: PriceBook, times: int) -> LengthCase:
    longer = claude_api.LongerAnswers(trace, times)
    recorded = sessions(longer.requests(cfg.switches))
    # the planned placement is not used in this comparison
    priced = claude_api.price(longer, replace(cfg, plan=False), prices, len(recorded))
    return LengthCase(times, _generated(recorded), priced, host.serve(recorded))


def _generated(recorded: Sequence[Session]) -> float:
    """Generated tokens per session."""
    return sum(request.output for session in recorded for request in session) / len(recorded)
