"""Measurements of `vllm_fp8`: what an FP8 KV cache of vLLM saves, and how it changes the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from kvbench.config.errors import UserError
from kvbench.experiments.vllm_fp8 import distributions
from kvbench.experiments.vllm_fp8.config import Fp8Config
from kvbench.runs.store import Record
from kvbench.vllm import measure
from kvbench.vllm.campaign import Campaign, Measurement, MeasurementContext
from kvbench.vllm.measure import LoadConfig
from kvbench.vllm.prompts import ServedPrompt, sessions
from kvbench.vllm.servers import ServerSpec

VERSION = "vllm_fp8 1"  # raised when the same configuration would give other numbers


def run(
    cfg: Fp8Config, specs: Sequence[ServerSpec], prompts: Sequence[ServedPrompt], campaign: Campaign
) -> list[Record]:
    """Measures the rows that the run's folder does not hold yet.

    Args:
        cfg: the configuration.
        specs: the servers with their checkpoints, reference first.
        prompts: the prompts.
        campaign: stores the rows.

    Returns:
        All rows of these servers and prompts, old and new.

    Raises:
        UserError: see `Campaign.run`.
    """
    reference = specs[0]

    def measurements(spec: ServerSpec) -> Iterator[Measurement]:
        calibrated = {"calibration": asdict(cfg.calibration)} if spec.scales else {}
        for item in prompts:
            key = {"prompt": item.prompt.hash, "task": item.task.identity(item.length), "top": cfg.top}
            reference_cell = campaign.cell_id(reference, "answer", key)
            if spec is reference:
                full_key, function = key, partial(_answer_of_reference, campaign, cfg.top, item)
            else:
                full_key = {**key, **calibrated, "reference": reference_cell}
                function = partial(_compared_answer, campaign, cfg.top, item, reference_cell)
            yield Measurement("answer", item.name, full_key, item.fields(), function)
        hashes = [item.prompt.hash for item in prompts]
        key = {**calibrated, "load": asdict(cfg.load), "prompts": hashes}
        yield Measurement("load", "load", key, {}, partial(_load, cfg.load, prompts))

    return campaign.run(specs, measurements, prompts[0])


async def _answer_of_reference(
    campaign: Campaign, top: int, item: ServedPrompt, context: MeasurementContext
) -> Record:
    """A cold answer of the reference, whose distributions are kept for the other servers."""
    answer, row = await measure.answer_alone(context.driver, item, salt=context.cell)
    if answer.token_ids is None:
        version = context.server.facts["vllm"]
        raise UserError(f"serving: vLLM {version} reports no token ids, use a newer version")
    found = await distributions.top_logprobs(
        context.driver, item, answer.token_ids, top, salt=f"{context.cell} scored"
    )
    distributions.save(_kept(campaign, context.cell), found)
    return {**row, **distributions.distance_fields(found, found, len(item.prompt.ids))}


async def _compared_answer(
    campaign: Campaign, top: int, item: ServedPrompt, reference_cell: str, context: MeasurementContext
) -> Record:
    """A cold answer, and the distance from the reference over the reference's own answer."""
    answer, row = await measure.answer_alone(context.driver, item, salt=context.cell)
    ids = next(row["output_ids"] for row in campaign.store.scan()[0] if row["cell"] == reference_cell)
    found = await distributions.top_logprobs(context.driver, item, ids, top, salt=f"{context.cell} scored")
    reference = distributions.read(_kept(campaign, reference_cell))
    row |= distributions.distance_fields(reference, found, len(item.prompt.ids))
    return {**row, "same_tokens": _common_prefix(ids, answer.token_ids or ()), "reference_tokens": len(ids)}


async def _load(cfg: LoadConfig, prompts: Sequence[ServedPrompt], context: MeasurementContext) -> Record:
    load = sessions(prompts, cfg.gap)
    return await measure.under_load(context.server, load, cfg, context.cell, stage=context.stage)


def _kept(campaign: Campaign, cell: str) -> Path:
    return campaign.run_dir / "reference" / f"{cell}.npz"


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens before the first difference between two answers."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(one), len(other)))
