"""Layer 2: device time of the sessions on a rented device, by method, with and without a prefix cache."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kvbench import cost
from kvbench.config.errors import UserError
from kvbench.config.typed import build, unknown
from kvbench.experiments.two_layer.breakeven import DAY, Fleet
from kvbench.experiments.two_layer.config import Throughput, TwoLayerConfig
from kvbench.experiments.two_layer.sessions import HostedRequest, Session
from kvbench.experiments.two_layer.simulate import Load, Memory, Server, alone, capacity, loaded

if TYPE_CHECKING:
    from kvbench.cost import Account, Hardware, ModelShape

PREFIX = " + prefix cache"  # what is cached is what decoding reads
DENSE_PREFIX = (
    " + dense prefix cache"  # the whole cache is kept for the next request, a compressed copy is decoded from
)
# what an eviction can be given although the queries of the reused tokens were never computed
FROM_KEYS = frozenset({"rope", "boundaries"})


@dataclass(frozen=True)
class ServingCost:
    """Capacity and cost of one way to serve the sessions.

    Attributes:
        name: method and budget, and whether there is a prefix cache.
        basis: "modelled" or "measured": source of the device time.
        fleet: rent and capacity.
        draws: loads of a full device, one per draw of the times at which sessions begin; empty if it cannot serve any.
        quiet: load of a session that is alone on the device, None if it cannot serve it.
        limit: the most sequences decoded together.
        note: reason why it cannot serve the sessions, empty if it can.
    """

    name: str
    basis: str
    fleet: Fleet
    draws: tuple[Load, ...]
    quiet: Load | None
    limit: int
    note: str = ""

    def mean(self, field: str) -> float:
        """Mean of a field of `Load` over the draws; nan without any."""
        return (
            math.fsum(getattr(load, field) for load in self.draws) / len(self.draws)
            if self.draws
            else math.nan
        )

    @property
    def busy(self) -> float:
        """Share of the day that the device is busy at its capacity."""
        return self.fleet.capacity * self.mean("seconds") / DAY

    @property
    def usd_range(self) -> tuple[float, float]:
        """Cost of a session if all time were charged as in the cheapest and in the dearest draw."""
        mean, usd = self.mean("seconds"), self.fleet.usd_per_session
        seconds = [load.seconds for load in self.draws]
        return (usd * min(seconds) / mean, usd * max(seconds) / mean) if seconds else (math.inf, math.inf)


@dataclass(frozen=True)
class CopyCost:
    """What it takes to keep a whole prompt and to decode from a compressed copy of it.

    Attributes:
        name: the way to serve.
        prompt: tokens of the prompt.
        whole: bytes of its whole cache, which stays in the prefix cache.
        copy: bytes of the copy, per sequence on the device.
        choose_s: seconds of making the copy, paid by every request.
        fresh: tokens whose queries choose; they are computed by every request.
        read: bytes that a decode step reads of the copy.
        read_whole: bytes that it would read of the whole cache.
    """

    name: str
    prompt: int
    whole: float
    copy: float
    choose_s: float
    fresh: int
    read: float
    read_whole: float


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
        self.rent_note = self.device.rent_note if cfg.usd_per_hour is None else "as given"
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
        share = self.cfg.utilisation if utilisation is None else utilisation
        ways = self._ways.values() if only is None else [self._ways[only]]
        return [self._served(way, recorded, share) for way in ways]

    def copies(self, recorded: Sequence[Session]) -> list[CopyCost]:
        """For the longest prompt, the cost of every way that decodes from a copy."""
        requests = [request for session in recorded for request in session]
        longest = max(requests, key=lambda request: request.prompt)
        sizes = {"prompt": longest.prompt, "new": longest.output}
        dense = cost.account("dense", self.shape, **sizes)
        found = []
        for way in self._ways.values():
            if way.prefix == DENSE_PREFIX:
                use = way.account(self.shape, **sizes)
                found.append(
                    CopyCost(
                        way.name, longest.prompt, dense.resident, use.working_end,
                        cost.estimate(use, self.device).compress_s, way.fresh, use.mean_step().read,
                        dense.mean_step().read,
                    )
                )  # fmt: skip
        return found

    @property
    def without_prefix(self) -> list[str]:
        """Methods that can use no prefix cache, each with the reason."""
        prefixed = {way.key.removesuffix("_prefix") for way in self._ways.values() if way.prefix}
        return [
            f"{way.name} (its choice needs {', '.join(sorted(way.method.needs - FROM_KEYS))})"
            for way in self._ways.values()
            if way.key not in prefixed and not way.prefix
        ]

    def _served(self, way: _Way, recorded: Sequence[Session], utilisation: float) -> ServingCost:
        modelled = _Modelled(way, self)
        memory = modelled.memory([request for session in recorded for request in session])
        if memory is None:
            note = "the longest request does not fit beside the weights"
            return ServingCost(way.name, "modelled", Fleet(self.usd_per_hour, 0), (), None, 0, note)
        entry = self.cfg.measured.get(way.key)
        timing: _Modelled | _Measured = modelled
        if entry is not None:
            timing = _Measured(build(Throughput, entry, f"measured.{way.key}"))
        server = Server(timing, modelled, memory)
        given, seeds, quiet = self.cfg.sessions_per_day, range(self.cfg.draws), alone(recorded, server)
        found = capacity(recorded, server, utilisation, len(seeds)) if given is None else given
        draws = tuple(loaded(recorded, server, found, seed) for seed in seeds) if found else ()
        served = ServingCost(
            way.name, timing.basis, Fleet(self.usd_per_hour, found), draws, quiet, memory.batch
        )
        if given is None or served.busy <= 1:
            return served
        note = f"overloaded: {given:,} sessions per day ask for {served.busy:.0%} of the device's time"
        return replace(served, fleet=Fleet(self.usd_per_hour, 0), draws=(), note=note)


@dataclass(frozen=True)
class _Way:
    """A method with its budget and its kind of prefix cache.

    Attributes:
        key: its name in `measured`.
        name: its name in tables.
        method: the method.
        budget: arguments of `kvbench.cost.account`.
        prefix: "" without a prefix cache, or `PREFIX` or `DENSE_PREFIX`.
        fresh: tokens at the end of a prompt that are computed even if they are cached.
    """

    key: str
    name: str
    method: Any
    budget: dict[str, Any]
    prefix: str = ""
    fresh: int = 1

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
        ways.append(_Way(label, name, method, budget))
        probe = ways[-1].account(shape, shape.positions - 1, 1)
        eviction = probe.resolved.eviction
        if probe.kept == probe.prompt and not probe.resolved.retains:
            ways.append(_Way(f"{label}_prefix", name + PREFIX, method, budget, PREFIX))
        elif eviction.needs <= FROM_KEYS:
            # evicted tokens are missing for the next question, so the whole cache is kept beside what is decoded from;
            # the queries that choose the tokens are those of the last ones, which are computed anew
            fresh = max(1, eviction.window)
            ways.append(_Way(f"{label}_prefix", name + DENSE_PREFIX, method, budget, DENSE_PREFIX, fresh))
    return ways


class _Modelled:
    """Device time and memory from the cost model; times are lower bounds."""

    basis = "modelled"

    def __init__(self, way: _Way, host: Host) -> None:
        self._way, self._host = way, host
        cfg, self._device = host.cfg, host.device
        element = 2 if cfg.weight_element is None else cfg.weight_element
        self._weights = cost.weight_step(host.shape, host.device, element)
        self._room = cfg.usable * host.device.memory - host.shape.weight_bytes(element)
        self._before = functools.cache(self._before_of)
        self._own = functools.cache(self._own_of)
        self._account = functools.cache(lambda prompt, new: way.account(host.shape, prompt, new))

    def memory(self, requests: Sequence[HostedRequest]) -> Memory | None:
        """Where the caches of these requests go, None if one of them does not fit."""
        room, batch, way = self._room, self._host.cfg.batch, self._way
        if max(map(self.while_prefilled, requests)) > room:
            return None
        if way.prefix == DENSE_PREFIX:
            return Memory(room, batch, self._host.shape.kv_bytes(1), copies=True, fresh=way.fresh)
        if way.prefix == PREFIX:
            longest = self._of(max(requests, key=lambda request: request.prompt))
            return Memory(room, batch, longest.resident / longest.prompt)
        return Memory(room, batch)

    def while_decoding(self, request: HostedRequest) -> float:
        """See Sizes."""
        use = self._of(request)
        return use.working_end if self._way.prefix == DENSE_PREFIX else use.resident_end

    def while_prefilled(self, request: HostedRequest) -> float:
        """See Sizes."""
        if self._way.prefix == DENSE_PREFIX:
            return self._host.shape.kv_bytes(request.prompt) + self.while_decoding(request)
        return max(cost.prefill_cache(self._of(request)), self._of(request).resident_end)

    def before(self, request: HostedRequest, reused: int) -> float:
        """See Timing."""
        return self._before(request.prompt, request.output, reused)

    def own(self, request: HostedRequest) -> tuple[float, float]:
        """See Timing."""
        return self._own(request.prompt, request.output)

    def step(self, batch: int, by_bytes: float, by_flops: float) -> float:
        """See Timing."""
        return self._weights.seconds(batch, by_bytes, by_flops)

    def _of(self, request: HostedRequest) -> Account:
        return self._account(request.prompt, request.output)

    def _before_of(self, prompt: int, new: int, reused: int) -> float:
        cfg = self._host.cfg
        found = cost.estimate(
            self._account(prompt, new), self._device, cached=reused, weight_element=cfg.weight_element
        )
        return found.prefill_s + found.compress_s

    def _own_of(self, prompt: int, new: int) -> tuple[float, float]:
        work = self._account(prompt, new).mean_step()
        return work.bytes / self._device.bandwidth(), work.flops / self._device.flops()


class _Measured:
    """Device time from a measured throughput, which a batch of any size reaches together."""

    basis = "measured"

    def __init__(self, rates: Throughput) -> None:
        self._rates = rates

    def before(self, request: HostedRequest, reused: int) -> float:
        """See Timing."""
        return (request.prompt - reused) / self._rates.prefill

    def own(self, request: HostedRequest) -> tuple[float, float]:
        """See Timing."""
        return 1 / self._rates.decode, 0.0

    def step(self, batch: int, by_bytes: float, by_flops: float) -> float:
        """See Timing."""
        return by_bytes
