"""The samples of a run's tasks as prompts for a server: the same tokens that the other methods are given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench import tasks
from kvbench.models.load import ModelConfig, check_folder, locate
from kvbench.tasks import Prompt, Renderer, Sample, Task
from kvbench.vllm.arrivals import Session, of_prompts
from kvbench.vllm.servers import ServersConfig


@dataclass(frozen=True, kw_only=True)
class AskedConfig(ServersConfig):
    """The keys of an experiment that asks servers the samples of tasks.

    Attributes:
        model: the model, whose tokenizer makes the prompts; a server that is started serves it.
        task: per label the entry for `kvbench.tasks.build`.
        seeds: of the task samples.
        limit: most samples per task, length and seed.
    """

    model: ModelConfig
    task: dict[str, Any]
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None


@dataclass(frozen=True)
class Asked:
    """One sample and its prompt."""

    task: Task
    length: int
    seed: int
    index: int
    sample: Sample
    prompt: Prompt

    @property
    def name(self) -> str:
        """For progress: `ruler_niah_single_1 2048 #3`."""
        return f"{self.task.label} {self.length} #{self.index}"

    def fields(self) -> dict[str, Any]:
        """What a row says of its prompt; the names are those of accuracy runs."""
        return {
            "task": self.task.label,
            "task_family": self.task.family,
            "length": self.length,
            "sample": self.index,
            "seed": self.seed,
            "sample_hash": self.prompt.hash,
            "prompt_tokens": len(self.prompt.ids),
            "metric": self.task.metric,
        }


def renderer(model: ModelConfig, positions: int) -> Renderer:
    """Makes prompts with the model's tokenizer, no longer than the server takes; the weights are not loaded.

    Args:
        model: which.
        positions: the server's longest context.

    Raises:
        UserError: no such model.
    """
    from transformers import AutoTokenizer

    from kvbench.models.quiet import quiet

    where = locate(model)
    check_folder(where, f"model.path={where}")
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False)
    return Renderer(tokenizer, model.chat_template, model.system, positions)


def numbers_per_token(folder: Path) -> int:
    """Numbers that the KV cache of the model in a folder holds per token: K and V, all layers and KV heads."""
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    return 2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * dim


def ask(
    entries: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], limit: int | None, make: Renderer
) -> Iterator[Asked]:
    """All samples of the chosen tasks.

    Args:
        entries: per label what `kvbench.tasks.build` takes.
        seeds: of the samples.
        limit: most samples per task, length and seed.
        make: renders them.

    Raises:
        UserError: a task that is not configured right, or longer than the server takes.
    """
    for label, entry in entries.items():
        task = tasks.build(label, entry)
        count = min(task.config.samples, limit or task.config.samples)
        for length in task.config.length:
            for seed in seeds if task.config.seeded else seeds[:1]:
                for index, sample in enumerate(task.samples(count, seed, length, make)):
                    yield Asked(task, length, seed, index, sample, make.render(sample))


def sessions(asked: Sequence[Asked], gap: float = 0.0) -> list[Session]:
    """The prompts as a load: the turns of a conversation are one session, every other sample one of its own."""

    def session(item: Asked) -> str:
        number = item.sample.meta.get("conversation", f"#{item.index}")
        return f"{item.task.label} {item.length} {item.seed} {number}"

    return of_prompts(((session(a), a.prompt.ids, a.sample.max_new_tokens) for a in asked), gap)
