"""What all prompts of a run share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvbench.config.errors import UserError
from kvbench.engine.attention import register_attention
from kvbench.engine.prefill import sliding_window
from kvbench.engine.rope import position_limit
from kvbench.engine.supported import check_model
from kvbench.models.load import LoadedModel, load_model
from kvbench.runs.config import RunConfig
from kvbench.runs.plan import Group, make_plan
from kvbench.runs.prompts import PlannedPrompt, Prompts, forget
from kvbench.runs.snapshots import Snapshots
from kvbench.tasks import Prompt, Renderer, Sample


@dataclass(frozen=True)
class RunContext:
    """A configuration with its loaded model.

    Attributes:
        cfg: the configuration.
        loaded: the model, with the attention hook.
        renderer: makes the model's prompts.
        snapshots: prefills that are kept, None for none.
    """

    cfg: RunConfig
    loaded: LoadedModel
    renderer: Renderer
    snapshots: Snapshots | None = None

    @classmethod
    def load(cls, cfg: RunConfig) -> RunContext:
        """Load the model of a configuration."""
        loaded = load_model(cfg.model, register_attention())
        check_model(loaded.model)
        snapshots = Snapshots(cfg, loaded) if cfg.snapshots.keep else None
        return cls(cfg, loaded, make_renderer(cfg, loaded), snapshots)

    def plan(self, run_dir: Path | None = None) -> list[Group]:
        """All groups of the run, see `make_plan`.

        Args:
            run_dir: the run's folder, which keeps what its prompts are; None to keep nothing.
        """
        prompts = Prompts(self.renderer, run_dir)
        groups = make_plan(self.cfg, self.loaded, prompts)
        prompts.save()
        return groups


@dataclass(frozen=True)
class PromptContext:
    """One prompt of a run, rendered, with the cells to run on it."""

    run: RunContext
    group: Group
    sample: Sample
    prompt: Prompt

    @classmethod
    def render(cls, run: RunContext, group: Group) -> PromptContext:
        """Render the prompt of a group.

        Raises:
            UserError: it is not what was planned.
        """
        sample = group.task.sample(group.index, group.seed, group.length, run.renderer, group.prompt.repeat)
        prompt = run.renderer.render(sample)
        if PlannedPrompt.of(sample, prompt) != group.prompt:
            forget(Path(run.cfg.run_dir))
            raise UserError(
                f"task.{group.task.label}: {group.name} is another prompt than planned; the same command plans anew"
            )
        return cls(run, group, sample, prompt)


def make_renderer(cfg: RunConfig, loaded: LoadedModel) -> Renderer:
    """A renderer whose prompts, with the answer, fit the model's positions and its sliding window."""
    limit = position_limit(loaded.model)
    if (sliding := sliding_window(loaded.model)) is not None:
        limit = min(limit, sliding)
    return Renderer(loaded.tokenizer, cfg.model.chat_template, cfg.model.system, limit)
