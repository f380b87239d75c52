"""Layer 2: device time of the sessions on a rented device, by method, with and without a prefix cache."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kvbench import cost
from kvbench.config.errors import UserError
from kvbench.config.typed import build, unknown
from kvbench.experiments.two_layer.breakeven import DAY, Fleet
from kvbench.experiments.two_layer.config import Throughput, TwoLayerConfig
from kvbench.experiments.two_layer.sessions import HostedRequest, Load, Session, capacity, loaded, unloaded

if TYPE_CHECKING:
    from kvbench.cost import Account, Hardware, ModelShape

PREFIX = " + prefix cache"


class Timing(Protocol):
    """Device time of requests."""

    basis: str

    def seconds(self, request: HostedRequest, reused: int) -> tuple[float, float]:
        """Seconds of prefill and of the rest of a request, if `reused` prompt tokens need no prefill."""
        ...


@dataclass(frozen=True)
class ServingCost:
    """Capacity and cost of one way to serve the sessions.

    Attributes:
        name: method and budget, and whether there is a prefix cache.
        basis: "modelled" or "measured": source of the device time.
        fleet: rent and capacity.
        busy: load per session on a full device.
        quiet: load of a session that is alone on the device.
        batch: smallest number of sequences decoded together, None if measured.
        note: reason why it cannot serve the sessions, empty if it can.
    """

    name: str
    basis: str
    fleet: Fleet
    busy: Load
    quiet: Load
    batch: int | None
    note: str = ""


class Host:
    """A model on a device, with every configured method."""

    def __init__(self, cfg: TwoLayerConfig) -> None:
        """Looks up model, device and methods.

        Raises:
            UserError: a name that does not exist, a device without a price, a method without its budget.
        """
        self.cfg = cfg
        self.shape: ModelShape = cost.model_shape(cfg.hosted_model, cfg.config_dirs)
        self.device: Hardware = cost.hardware(cfg.device, cfg.config_dirs)
        rent = self.device.usd_per_hour if cfg.usd_per_hour is None else cfg.usd_per_hour
        if rent is None:
            raise UserError(f"usd_per_hour: {self.device.name} has no rental price, give one")
        self.usd_per_hour: float = rent
        self._ways = {way.name: way for way in _ways(cfg, self.shape)}
        keys = [way.key for way in self._ways.values()]
        for key in cfg.measured:
            if key not in keys:
                raise unknown(f"measured.{key}", key, keys, "way to serve")

    def serve(
        self, recorded: Sequence[Session], utilisation: float | None = None, only: str | None = None
    ) -> list[ServingCost]:
        """Every way to serve the sessions.

        Args:
            recorded: the sessions.
            utilisation: share of the day that a device may be busy; defaults to the configuration's.
            only: name of a single way to serve; default is all of them.

        Raises:
            UserError: a request longer than the model's context.
        """
        longest = max(request.prompt + request.output for session in recorded for request in session)
        if longest > self.shape.positions:
            raise UserError(
                f"hosted_model: a request has {longest} tokens, {self.shape.name} takes {self.shape.positions}; give "
                "fewer turns, smaller sizes or another layout"
            )
        busy_s = DAY * (self.cfg.utilisation if utilisation is None else utilisation)
        ways = self._ways.values() if only is None else [self._ways[only]]
        return [self._served(way, recorded, busy_s) for way in ways]

    def _served(self, way: _Way, recorded: Sequence[Session], busy_s: float) -> ServingCost:
        nothing = Load(float("inf"), 0.0, 0.0)
        modelled = _Modelled(way, self)
        requests = [request for session in recorded for request in session]
        if any(modelled.batch(request) < 1 for request in requests):
            note = "the longest request does not fit beside the weights"
            return ServingCost(way.name, "modelled", Fleet(self.usd_per_hour, 0), nothing, nothing, 0, note)
        entry = self.cfg.measured.get(way.key)
        timing: Timing = modelled
        if entry is not None:
            timing = _Measured(build(Throughput, entry, f"measured.{way.key}"))
        pool = modelled.pool(requests) if way.prefix else 0.0
        found = capacity(recorded, timing.seconds, pool, busy_s)
        quiet = unloaded(recorded, timing.seconds, pool)
        busy = loaded(recorded, timing.seconds, pool, found) if found else quiet
        batch = None if entry is not None else min(map(modelled.batch, requests))
        return ServingCost(way.name, timing.basis, Fleet(self.usd_per_hour, found), busy, quiet, batch)


@dataclass(frozen=True)
class _Way:
    """A method with its budget, with or without a prefix cache; `key` is its name in `measured`."""

    key: str
    name: str
    method: Any
    budget: dict[str, Any]
    prefix: bool

    def account(self, shape: ModelShape, prompt: int, new: int) -> Account:
        return cost.account(self.method, shape, prompt=prompt, new=new, **self.budget)


def _ways(cfg: TwoLayerConfig, shape: ModelShape) -> list[_Way]:
    # imported after validation, because it loads torch
    from kvbench.methods import build as method_of

    ways = []
    for label, entry in cfg.method.items():
        method = method_of(entry, f"method.{label}")
        budget: dict[str, Any] = {}
        name = label
        if method.needs_budget:
            given = [("tokens", value) for value in cfg.budget.tokens] + [
                ("ratio", value) for value in cfg.budget.ratio
            ]
            if len(given) != 1:
                raise UserError(f"budget: {label} needs one, give budget.tokens=[N] or budget.ratio=[R]")
            budget = dict(given)
            name = f"{label} {given[0][1]}"
        ways.append(_Way(label, name, method, budget, prefix=False))
        # evicted tokens are missing for the next question: only complete caches can be shared
        probe = ways[-1].account(shape, shape.positions - 1, 1)
        if probe.kept == probe.prompt and not probe.resolved.retains:
            ways.append(_Way(f"{label}_prefix", name + PREFIX, method, budget, prefix=True))
    return ways


class _Modelled:
    """Device time from the cost model, a lower bound."""

    basis = "modelled"

    def __init__(self, way: _Way, host: Host) -> None:
        self._host = host
        self._prefill = functools.cache(self._prefill_of)
        self._rest = functools.cache(self._rest_of)
        self._account = functools.cache(lambda prompt, new: way.account(host.shape, prompt, new))

    def batch(self, request: HostedRequest) -> int:
        """Number of sequences like this one that are decoded together."""
        cfg = self._host.cfg
        use = self._account(request.prompt, request.output)
        return min(cfg.batch, cost.max_batch(use, self._host.device, cfg.usable, cfg.weight_element))

    def pool(self, requests: Sequence[HostedRequest]) -> float:
        """Tokens that fit in memory next to the weights."""
        cfg = self._host.cfg
        longest = max(requests, key=lambda request: request.prompt)
        use = self._account(longest.prompt, longest.output)
        element = use.element if cfg.weight_element is None else cfg.weight_element
        room = cfg.usable * self._host.device.memory - self._host.shape.weight_bytes(element)
        return room / (use.resident / use.prompt)

    def seconds(self, request: HostedRequest, reused: int) -> tuple[float, float]:
        """See Timing."""
        key = (request.prompt, request.output)
        return self._prefill(*key, reused), self._rest(*key, self.batch(request))

    def _estimate(self, prompt: int, new: int, batch: int, cached: int = 0) -> cost.Estimate:
        cfg = self._host.cfg
        return cost.estimate(
            self._account(prompt, new),
            self._host.device,
            batch,
            cached=cached,
            usable=cfg.usable,
            weight_element=cfg.weight_element,
            usd_per_hour=self._host.usd_per_hour,
        )

    def _prefill_of(self, prompt: int, new: int, reused: int) -> float:
        return self._estimate(prompt, new, 1, reused).prefill_s

    def _rest_of(self, prompt: int, new: int, batch: int) -> float:
        found = self._estimate(prompt, new, batch)
        return found.request_s - found.prefill_s


class _Measured:
    """Device time from a measured throughput."""

    basis = "measured"

    def __init__(self, rates: Throughput) -> None:
        self._rates = rates

    def seconds(self, request: HostedRequest, reused: int) -> tuple[float, float]:
        """See Timing."""
        return (request.prompt - reused) / self._rates.prefill, request.output / self._rates.decode
