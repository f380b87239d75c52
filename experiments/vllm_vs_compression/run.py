"""Measurements of `vllm_vs_compression`: vLLM's side, and kvbench's usual runs of the compression methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from kvbench.experiments.vllm_vs_compression.config import VersusConfig
from kvbench.runs.progress import ProgressFactory
from kvbench.runs.store import Record, Store
from kvbench.vllm import measure
from kvbench.vllm.campaign import Campaign, Measurement, MeasurementContext
from kvbench.vllm.prompts import ServedPrompt
from kvbench.vllm.servers import ServerSpec

VERSION = "vllm_vs_compression 1"  # raised when the same configuration would give other numbers


def run_methods(
    cfg: VersusConfig, prompts: Sequence[ServedPrompt], progress: ProgressFactory
) -> tuple[list[Record], list[Record], list[Record]]:
    """Runs the compression methods for accuracy and for isolated times.

    Args:
        cfg: the configuration.
        prompts: the prompts whose rows are returned.
        progress: makes the progress displays.

    Returns:
        (rows of the accuracy run, rows of the efficiency run at batch 1, failures of both).
    """
    # imported here because they import torch: mistakes in the configuration show up at once
    from kvbench.experiments.accuracy.run import run_accuracy
    from kvbench.experiments.efficiency.run import run_efficiency

    failures = run_accuracy(replace(cfg.methods, run_dir=str(cfg.folder / "accuracy")), progress)
    failures += run_efficiency(replace(cfg.methods, run_dir=str(cfg.folder / "efficiency")), progress)
    hashes = {item.prompt.hash for item in prompts}
    accuracy, isolated = (
        [row for row in Store(cfg.folder / name).scan()[0] if row["sample_hash"] in hashes]
        for name in ("accuracy", "efficiency")
    )
    return accuracy, [row for row in isolated if row["batch"] == 1], failures


def run(specs: Sequence[ServerSpec], prompts: Sequence[ServedPrompt], campaign: Campaign) -> list[Record]:
    """Answers every prompt twice on every server: cold, and with its prefix in the cache.

    Args:
        specs: the servers, with their models.
        prompts: the prompts.
        campaign: stores the rows.

    Returns:
        All rows of these servers and prompts, old and new.

    Raises:
        UserError: see `Campaign.run`.
    """

    def measurements(_: ServerSpec) -> Iterator[Measurement]:
        for item in prompts:
            key = {"prompt": item.prompt.hash, "task": item.task.identity(item.length)}
            yield Measurement("answer", item.name, key, item.fields(), partial(_answer_twice, item))

    return campaign.run(specs, measurements, prompts[0])


async def _answer_twice(item: ServedPrompt, context: MeasurementContext) -> Record:
    _, cold = await measure.answer_alone(context.driver, item, salt=context.cell)
    _, warm = await measure.answer_alone(context.driver, item, salt=context.cell)
    names = ("score", "ttft_s", "per_token_s", "cached_tokens")
    return {
        **cold,
        **{f"warm_{name}": warm[name] for name in names},
        "warm_same": warm["output"] == cold["output"],
    }
