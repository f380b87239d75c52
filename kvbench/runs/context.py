"""What all prompts of a run share."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.engine.attention import register_attention
from kvbench.engine.prefill import sliding_window
from kvbench.engine.rope import position_limit
from kvbench.engine.supported import check_model
from kvbench.models.load import LoadedModel, load_model
from kvbench.runs.config import RunConfig
from kvbench.runs.plan import Group, make_plan
from kvbench.tasks import Prompt, Renderer


@dataclass(frozen=True)
class RunContext:
    """A configuration with its loaded model.

    Attributes:
        cfg: the configuration.
        loaded: the model, with the attention hook.
        renderer: makes the model's prompts.
    """

    cfg: RunConfig
    loaded: LoadedModel
    renderer: Renderer

    @classmethod
    def load(cls, cfg: RunConfig) -> RunContext:
        """Load the model of a configuration."""
        loaded = load_model(cfg.model, register_attention())
        check_model(loaded.model)
        return cls(cfg, loaded, make_renderer(cfg, loaded))

    def plan(self) -> list[Group]:
        """All groups of the run, see `make_plan`."""
        return make_plan(self.cfg, self.loaded, self.renderer)


@dataclass(frozen=True)
class PromptContext:
    """One prompt of a run, rendered, with the cells to run on it."""

    run: RunContext
    group: Group
    prompt: Prompt

    @classmethod
    def render(cls, run: RunContext, group: Group) -> PromptContext:
        """Render the prompt of a group."""
        return cls(run, group, run.renderer.render(group.sample))


def make_renderer(cfg: RunConfig, loaded: LoadedModel) -> Renderer:
    """A renderer whose prompts, with the answer, fit the model's positions and its sliding window."""
    limit = position_limit(loaded.model)
    if (sliding := sliding_window(loaded.model)) is not None:
        limit = min(limit, sliding)
    return Renderer(loaded.tokenizer, cfg.model.chat_template, cfg.model.system, limit)
