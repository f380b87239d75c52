"""Configuration of `vllm_vs_compression`: servers, and a run of the compression methods on the same prompts."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from kvbench.config.compose import Composed
from kvbench.config.errors import UserError
from kvbench.experiments.common import configuration
from kvbench.runs.config import RunConfig, validate
from kvbench.vllm.prompts import PromptsConfig


@dataclass(frozen=True)
class VersusConfig:
    """The configuration.

    Attributes:
        servers: the servers and their prompts; the first server is vLLM's dense one.
        methods: the compression methods, on the same prompts.
    """

    servers: PromptsConfig
    methods: RunConfig

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.servers.run_dir)


def versus_config(composed: Composed) -> VersusConfig:
    """Builds the configuration.

    Raises:
        UserError: a key or value that is not allowed.
    """
    servers = configuration(composed, PromptsConfig)
    names = {field.name for field in fields(RunConfig)} | {"variants", "ablate"}
    data = {key: value for key, value in composed.data.items() if key in names}
    methods = validate(replace(composed, data=data))
    if methods.protocol != ("query_aware",):
        raise UserError("protocol: vLLM gets whole prompts, allowed: [query_aware]")
    return VersusConfig(servers, methods)
