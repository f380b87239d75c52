"""The experiment `vllm_fp8`: what an FP8 KV cache of vLLM buys, and what it does to the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from kvbench.config.errors import UserError
from kvbench.runs.store import Record
from kvbench.vllm import measure
from kvbench.vllm.campaign import Campaign, Job, Ready
from kvbench.vllm.measure import LoadConfig
from kvbench.vllm.prompts import Asked, AskedConfig, sessions
from kvbench.vllm.servers import Setup

VERSION = "vllm_fp8 1"  # raised when the same setting would give other numbers


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """On what the scales of a checkpoint are measured.

    Attributes:
        samples: of every chosen task and length.
        seed: of these samples; none of the seeds that are scored.
    """

    samples: int = 4
    seed: int = 1000


@dataclass(frozen=True, kw_only=True)
class Fp8Config(AskedConfig):
    """What is compared; the first of `setups` is the unquantised reference.

    Attributes:
        top: log probabilities per token that are compared; vLLM serves 20 unless told otherwise.
        load: how the same prompts arrive for the latency under load.
        calibration: of setups with `scales`.
    """

    top: int = 20
    load: LoadConfig = field(default_factory=LoadConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)

    def __post_init__(self) -> None:
        if not self.task:
            raise UserError("task: empty, give task=[...]")
        if self.top < 1:
            raise UserError(f"top: {self.top} is not allowed, give 1 or more")
        if self.calibration.seed in self.seeds:
            raise UserError(
                f"calibration.seed: {self.calibration.seed} is among the seeds that are scored, give another"
            )


def run(cfg: Fp8Config, chosen: Sequence[Setup], asked: Sequence[Asked], campaign: Campaign) -> list[Record]:
    """Measures what the run's folder does not hold yet.

    Args:
        cfg: the configuration.
        chosen: of `setups.setups`, with their models, reference first.
        asked: the prompts.
        campaign: where rows go.

    Returns:
        All rows of these setups and prompts, old and new.

    Raises:
        UserError: something that the user can mend.
    """
    reference = chosen[0]

    def jobs(setup: Setup) -> Iterator[Job]:
        calibrated = {"calibration": asdict(cfg.calibration)} if setup.scales else {}
        for item in asked:
            key = {"prompt": item.prompt.hash, "task": item.task.identity(), "top": cfg.top}
            first = campaign.cell(reference, "answer", key)
            if setup is reference:
                own, do = key, partial(_reference, campaign, cfg.top, item)
            else:
                own = {**key, **calibrated, "reference": first}
                do = partial(_compared, campaign, cfg.top, item, first)
            yield Job("answer", item.name, own, item.fields(), do)
        hashes = [item.prompt.hash for item in asked]
        key = {**calibrated, "load": asdict(cfg.load), "prompts": hashes}
        yield Job("load", "load", key, {}, partial(_load, cfg.load, asked))

    return campaign.run(chosen, jobs, asked[0])


async def _reference(campaign: Campaign, top: int, item: Asked, ready: Ready) -> Record:
    """A cold answer of the reference, whose distributions are kept for the others."""
    given, row = await measure.answer(ready.driver, item, salt=ready.cell)
    if given.token_ids is None:
        version = ready.server.facts["vllm"]
        raise UserError(f"serving: vLLM {version} gives no token ids, a newer one is needed")
    found = await measure.scored(ready.driver, item, given.token_ids, top, salt=f"{ready.cell} scored")
    measure.save(_kept(campaign, ready.cell), found)
    return {**row, **measure.distance(found, found, len(item.prompt.ids))}


async def _compared(campaign: Campaign, top: int, item: Asked, reference: str, ready: Ready) -> Record:
    """A cold answer, and the distance from the reference over the reference's own answer."""
    given, row = await measure.answer(ready.driver, item, salt=ready.cell)
    ids = next(row["output_ids"] for row in campaign.store.scan()[0] if row["cell"] == reference)
    found = await measure.scored(ready.driver, item, ids, top, salt=f"{ready.cell} scored")
    row |= measure.distance(measure.read(_kept(campaign, reference)), found, len(item.prompt.ids))
    return {**row, "same_tokens": _same(ids, given.token_ids or ()), "reference_tokens": len(ids)}


async def _load(cfg: LoadConfig, asked: Sequence[Asked], ready: Ready) -> Record:
    _, row = await measure.under_load(
        ready.server, sessions(asked, cfg.gap), cfg, ready.cell, stage=ready.stage
    )
    return row


def _kept(campaign: Campaign, cell: str) -> Path:
    return campaign.run_dir / "reference" / f"{cell}.npz"


def _same(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two answers have in common before they part."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
