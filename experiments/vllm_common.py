"""What the experiments on vLLM servers share: servers, prompts and campaign of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kvbench.models.fingerprint import fingerprint
from kvbench.models.load import locate
from kvbench.runs.progress import ProgressFactory
from kvbench.tasks import Renderer
from kvbench.vllm.campaign import Campaign
from kvbench.vllm.prompts import PromptsConfig, ServedPrompt, make_prompts, make_renderer
from kvbench.vllm.servers import MultiServerConfig, ServerSpec, max_context, server_specs, with_model


@dataclass(frozen=True)
class ServerRun:
    """An experiment on several servers; everything is made on first use.

    Attributes:
        cfg: the configuration.
        version: of the experiment, see `Campaign`.
        progress: makes the progress display.
    """

    cfg: MultiServerConfig
    version: str
    progress: ProgressFactory

    @cached_property
    def specs(self) -> list[ServerSpec]:
        """The servers, as configured, and found to be there and to take their settings: before prompts are made.

        Raises:
            UserError: a setup that is not allowed, or an environment without vLLM.
        """
        found = server_specs(self.cfg.serving, self.cfg.setups)
        for spec in found:
            spec.check()
        return found

    @cached_property
    def folder(self) -> Path:
        """Folder of the model.

        Raises:
            UserError: there is no such model.
        """
        return locate(self.cfg.model)

    @cached_property
    def servers(self) -> list[ServerSpec]:
        """The servers, with the model."""
        return [with_model(spec, self.folder) for spec in self.specs]

    @property
    def labels(self) -> list[str]:
        """Labels of the servers, in order."""
        return [spec.label for spec in self.specs]

    @property
    def max_context(self) -> int:
        """Longest context in tokens that all servers take."""
        return max_context(self.specs)

    @cached_property
    def renderer(self) -> Renderer:
        """Makes prompts that fit all servers."""
        return make_renderer(self.cfg.model, self.max_context)

    def prompts(self, cfg: PromptsConfig) -> list[ServedPrompt]:
        """All samples of the configured tasks.

        Raises:
            UserError: an invalid task, or a prompt beyond the servers' context.
        """
        return list(make_prompts(cfg.task, cfg.seeds, cfg.limit, self.renderer))

    @cached_property
    def campaign(self) -> Campaign:
        """Measures and stores the rows."""
        return Campaign(
            Path(self.cfg.run_dir),
            self.version,
            self.cfg.model.name,
            self.folder,
            fingerprint(self.folder),
            self.progress,
        )
