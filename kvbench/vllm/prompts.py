"""Samples of a run's tasks as prompts for a server: the same tokens that the compression methods get."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench import tasks
from kvbench.config.errors import UserError
from kvbench.models.load import ModelConfig, check_folder, locate
from kvbench.tasks import Prompt, Renderer, Sample, Task
from kvbench.tasks.base import refuse_twins
from kvbench.vllm.arrivals import Session, of_prompts
from kvbench.vllm.servers import MultiServerConfig


@dataclass(frozen=True, kw_only=True)
class PromptsConfig(MultiServerConfig):
    """The keys of an experiment that sends task samples to servers.

    Attributes:
        task: by label the entry for `kvbench.tasks.build`.
        seeds: of the task samples.
        limit: maximum number of samples per task, length and seed.
    """

    task: dict[str, Any]
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None


@dataclass(frozen=True)
class ServedPrompt:
    """A task sample with its prompt."""

    task: Task
    length: int
    seed: int
    index: int
    sample: Sample
    prompt: Prompt

    @property
    def name(self) -> str:
        """Name in progress displays, as `ruler_niah_single_2 2048 #3`."""
        return f"{self.task.label} {self.length} #{self.index}"

    def fields(self) -> dict[str, Any]:
        """The fields of a row that describe its prompt; named as in accuracy runs."""
        return {
            "task": self.task.label,
            "task_family": self.task.family,
            "length": self.length,
            "sample": self.index,
            "seed": self.seed,
            "sample_hash": self.prompt.hash,
            "prompt_tokens": len(self.prompt.ids),
            "metric": self.task.metric,
            "meta": dict(self.sample.meta),
        }


def make_renderer(model: ModelConfig, max_context: int) -> Renderer:
    """A renderer with the model's tokenizer; the weights are not loaded.

    Args:
        model: the model.
        max_context: longest context in tokens that the servers take.

    Raises:
        UserError: there is no such model.
    """
    from kvbench.models.quiet import quiet
    from kvbench.models.tokens import load_tokenizer

    folder = locate(model)
    named = f"model.path={folder}"
    check_folder(folder, named)
    with quiet():
        tokenizer = load_tokenizer(folder, named)
    return Renderer(tokenizer, model.chat_template, model.system, max_context)


def numbers_per_token(folder: Path) -> int:
    """Numbers per token in the KV cache of the model in a folder: K and V, all layers and KV heads."""
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    return 2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * dim


def make_prompts(
    entries: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], limit: int | None, renderer: Renderer
) -> list[ServedPrompt]:
    """All samples of the selected tasks.

    Args:
        entries: by label the argument of `kvbench.tasks.build`.
        seeds: of the samples.
        limit: maximum number of samples per task, length and seed.
        renderer: makes the prompts.

    Raises:
        UserError: an invalid task, a prompt beyond the servers' context, or one that two tasks or lengths share.
    """
    made = list(_made(entries, seeds, limit, renderer))
    refuse_twins(
        (item.task.label, item.name, (str(item.task.identity(item.length)), item.prompt.hash))
        for item in made
    )
    return made


def _made(
    entries: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], limit: int | None, renderer: Renderer
) -> Iterator[ServedPrompt]:
    for label, entry in entries.items():
        task = tasks.build(label, entry)
        count = task.wanted(limit)
        for length in task.config.length:
            for seed in seeds if task.config.seeded else seeds[:1]:
                for index, (sample, prompt) in enumerate(task.prompts(count, seed, length, renderer)):
                    if sample.continuations or sample.sampling:
                        what = "judges known texts" if sample.continuations else "draws its answers"
                        raise UserError(f"task.{label}: {what}; servers are asked for greedy answers")
                    yield ServedPrompt(task, length, seed, index, sample, prompt)


def sessions(prompts: Sequence[ServedPrompt], gap: float = 0.0) -> list[Session]:
    """The prompts as a load: the turns of a conversation form one session, every other sample its own."""

    def session(item: ServedPrompt) -> str:
        meta = item.sample.meta
        # the turns of a user's conversation have its line in common
        turn = f"line {meta['line']}" if "line" in meta and "turn" in meta else f"#{item.index}"
        number = meta.get("conversation", turn)
        return f"{item.task.label} {item.length} {item.seed} {number}"

    return of_prompts(((session(item), item.prompt.ids, item.sample.max_new_tokens) for item in prompts), gap)
