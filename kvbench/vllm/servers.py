"""Several servers to compare: one configuration, and what each changes in it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.typed import build
from kvbench.vllm import environment
from kvbench.vllm.config import ServingConfig
from kvbench.vllm.driver import Driver
from kvbench.vllm.environment import Environment
from kvbench.vllm.launcher import Server

CPU_FP8 = "functional check only (truncating CPU kernel)"
# settings that cannot change a number
_PLACES = ("base_url", "api_key_env", "served_model", "timeout", "model", "python", "start_timeout")


@dataclass(frozen=True, kw_only=True)
class ServersConfig:
    """The keys that every experiment on several servers has.

    Attributes:
        run_dir: where the results go.
        serving: keys of `ServingConfig` for all servers.
        setups: per label the keys that differ, and `scales`.
    """

    run_dir: str
    serving: dict[str, Any]
    setups: dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """One server.

    Attributes:
        label: its name in tables.
        serving: how it is started, or where it runs.
        scales: its checkpoint holds calibrated scales of the KV cache.
    """

    label: str
    serving: ServingConfig
    scales: bool = False

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What of it can change a number, versions included; a server that runs elsewhere is asked for its own.

        Raises:
            ServingError: no vLLM, or nobody there.
        """
        own = {name: value for name, value in asdict(self.serving).items() if name not in _PLACES}
        if self.serving.base_url:
            return {"running": True, "vllm": asyncio.run(_version(self.serving)), "scales": self.scales}
        return {
            **own,
            "versions": dict(_environment(self.serving.python).versions),
            "scales": self.scales,
        }

    def check(self) -> None:
        """Refuses, before anything starts, what would fail late or give garbage.

        Raises:
            ServingError: names the key and what is allowed.
        """
        if not self.serving.base_url:
            environment.check(self.serving, _environment(self.serving.python))


def setups(serving: Mapping[str, Any], entries: Mapping[str, Any]) -> list[Setup]:
    """Servers by label.

    Args:
        serving: keys of `ServingConfig` for all of them.
        entries: per label the keys that differ, and `scales`.

    Raises:
        UserError: an unknown key, or one address for several servers.
    """
    if not entries:
        raise UserError("setups: empty, give setups: {NAME: {kv_cache_dtype: ...}}")
    found = []
    for label, entry in entries.items():
        if not isinstance(entry, Mapping | None):
            raise UserError(f"setups.{label}: {entry!r} is not a set of keys")
        own = dict(entry or {})
        scales = own.pop("scales", False)
        if not isinstance(scales, bool):
            raise UserError(f"setups.{label}.scales: {scales!r} is not true or false")
        found.append(Setup(label, build(ServingConfig, {**serving, **own}, f"setups.{label}"), scales))
    urls = [setup.serving.base_url for setup in found if setup.serving.base_url]
    if len(set(urls)) < len(urls):
        raise UserError(
            "serving.base_url: one running server cannot be several setups; give each its own, as "
            f"setups.{found[0].label}.base_url=http://..., or keep one setup"
        )
    return found


def with_model(setup: Setup, folder: Path) -> Setup:
    """The setup on an experiment's checkpoint, unless it has one of its own or runs already."""
    if setup.serving.base_url or setup.serving.model:
        return setup
    return replace(setup, serving=replace(setup.serving, model=str(folder)))


def device(server: Server) -> str:
    """What a server runs on: cpu, cuda, or `not given` for one that runs elsewhere and does not show it."""
    known = server.facts.get("device")
    return known or ("cpu" if "cpu" in str(server.facts.get("vllm")) else "not given")


def cache_bits(server: Server, numbers_per_token: int) -> float | None:
    """Bits per number of the KV cache, from its memory and capacity; None where the server does not say its memory.

    The dtype that the server names is not enough: a checkpoint with scales makes "auto" FP8.
    """
    capacity = server.facts.get("capacity")
    if not capacity or not capacity["memory_bytes"]:
        return None
    return 8 * capacity["memory_bytes"] / (capacity["tokens"] * numbers_per_token)


def note(server: Server, setup: Setup) -> str:
    """What must be said beside the setup's numbers, "" if nothing."""
    fp8 = setup.scales or setup.serving.kv_cache_dtype.startswith("fp8")
    return CPU_FP8 if fp8 and device(server) == "cpu" else ""


# asked for once per command: starting a Python takes its time
@functools.cache
def _environment(python: str) -> Environment:
    return environment.find(python)


async def _version(cfg: ServingConfig) -> str | None:
    assert cfg.base_url is not None
    async with Driver(cfg.base_url, cfg.served_model) as driver:
        return await driver.version()
