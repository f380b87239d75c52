"""Servers to compare: a shared configuration, and the changes of each server."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.typed import build
from kvbench.models.load import ModelConfig
from kvbench.vllm import environment
from kvbench.vllm.config import ServerConfig
from kvbench.vllm.driver import Driver
from kvbench.vllm.environment import Environment
from kvbench.vllm.launcher import Server

CPU_FP8 = "functional check only (truncating CPU kernel)"
# settings that cannot change a number
_NOT_IN_IDENTITY = (
    "base_url", "api_key_env", "served_model", "timeout", "model", "python", "start_timeout",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MultiServerConfig:
    """The keys of every experiment on several servers.

    Attributes:
        run_dir: where the results go.
        serving: keys of `ServerConfig` for all servers.
        setups: by label the keys that differ, and `scales`.
        model: the model that a started server serves, and whose tokenizer makes the prompts.
    """

    run_dir: str
    serving: dict[str, Any]
    setups: dict[str, Any]
    model: ModelConfig


@dataclass(frozen=True)
class ServerSpec:
    """One server to measure on.

    Attributes:
        label: its name in tables.
        config: how to start it, or its address.
        scales: whether its checkpoint holds calibrated scales of the KV cache.
    """

    label: str
    config: ServerConfig
    scales: bool = False

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The part of a row's id that depends on the server: settings and versions; a running server reports its own.

        Raises:
            ServingError: there is no vLLM, or the server is not reachable.
        """
        if self.config.base_url:
            return {"running": True, "vllm": asyncio.run(_version(self.config)), "scales": self.scales}
        settings = {
            name: value for name, value in asdict(self.config).items() if name not in _NOT_IN_IDENTITY
        }
        return {
            **settings,
            "versions": dict(_environment(self.config.python).versions),
            "scales": self.scales,
        }

    def check(self) -> None:
        """Rejects, before anything starts, settings that would fail late or produce garbage.

        Raises:
            ServingError: a setting that the server does not support.
        """
        if not self.config.base_url:
            environment.check(self.config, _environment(self.config.python))


def server_specs(serving: Mapping[str, Any], setups: Mapping[str, Any]) -> list[ServerSpec]:
    """The servers, in order.

    Args:
        serving: keys of `ServerConfig` for all of them.
        setups: by label the keys that differ, and `scales`.

    Raises:
        UserError: an unknown key, or the same address for several servers.
    """
    if not setups:
        raise UserError("setups: empty, give setups: {NAME: {kv_cache_dtype: ...}}")
    found = []
    for label, entry in setups.items():
        if not isinstance(entry, Mapping | None):
            raise UserError(f"setups.{label}: {entry!r} is not a set of keys")
        changes = dict(entry or {})
        scales = changes.pop("scales", False)
        if not isinstance(scales, bool):
            raise UserError(f"setups.{label}.scales: {scales!r} is not true or false")
        config = build(ServerConfig, {**serving, **changes}, f"setups.{label}")
        found.append(ServerSpec(label, config, scales))
    urls = [spec.config.base_url for spec in found if spec.config.base_url]
    if len(set(urls)) < len(urls):
        raise UserError(
            "serving.base_url: one running server cannot be several setups; give each its own, as "
            f"setups.{found[0].label}.base_url=http://..., or keep one setup"
        )
    return found


def with_model(spec: ServerSpec, folder: Path) -> ServerSpec:
    """The server with a checkpoint to serve, unless it has a model of its own or already runs."""
    if spec.config.base_url or spec.config.model:
        return spec
    return replace(spec, config=replace(spec.config, model=str(folder)))


def max_context(specs: Sequence[ServerSpec]) -> int:
    """Longest context in tokens that all servers take."""
    return min(spec.config.max_model_len for spec in specs)


def device(server: Server) -> str:
    """Kind of device of a server: cpu, cuda, or `not given` for a running one that does not show it."""
    known = server.facts.get("device")
    return known or ("cpu" if "cpu" in str(server.facts.get("vllm")) else "not given")


def block_size(server: Server) -> int | None:
    """Tokens per block of the KV cache; None if the server does not report it."""
    capacity = server.facts.get("capacity")
    return capacity["block_size"] if capacity else None


def cache_bits(server: Server, numbers_per_token: int) -> float | None:
    """Bits per number in the KV cache, from its memory and capacity; None if the server does not report its memory.

    The dtype that the server reports is not enough: with a checkpoint that has scales, "auto" is FP8.
    """
    capacity = server.facts.get("capacity")
    if not capacity or not capacity["memory_bytes"]:
        return None
    return 8 * capacity["memory_bytes"] / (capacity["tokens"] * numbers_per_token)


def note(server: Server, spec: ServerSpec) -> str:
    """A warning to show with the server's numbers, "" if there is none."""
    fp8 = spec.scales or spec.config.kv_cache_dtype.startswith("fp8")
    return CPU_FP8 if fp8 and device(server) == "cpu" else ""


# cached per process: starting another Python is slow
@functools.cache
def _environment(python: str) -> Environment:
    return environment.find(python)


async def _version(cfg: ServerConfig) -> str | None:
    assert cfg.base_url is not None
    async with Driver(cfg.base_url, cfg.served_model) as driver:
        return await driver.version()
