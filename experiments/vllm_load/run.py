"""Measurements of `vllm_load`: latency and goodput against the rate at which sessions arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from kvbench.experiments.vllm_common import ServerRun
from kvbench.experiments.vllm_load.config import LoadRunConfig
from kvbench.experiments.vllm_load.trace import recorded_sessions
from kvbench.runs.store import Record, digest
from kvbench.vllm import measure, prompts
from kvbench.vllm.arrivals import Session
from kvbench.vllm.blocks import shared_prefix
from kvbench.vllm.campaign import Campaign, Measurement, MeasurementContext
from kvbench.vllm.measure import LoadConfig
from kvbench.vllm.prompts import ServedPrompt
from kvbench.vllm.servers import ServerSpec, block_size

VERSION = "vllm_load 1"  # raised when the same configuration would give other numbers


@dataclass(frozen=True)
class Load:
    """The sessions to send.

    Attributes:
        sessions: the sessions.
        source: their description for captions.
        warm_up: see `Campaign.run`.
    """

    sessions: Sequence[Session]
    source: str
    warm_up: ServedPrompt | None = None


def make_load(cfg: LoadRunConfig, server_run: ServerRun) -> Load:
    """The configured load, of a trace or of tasks.

    Raises:
        UserError: an invalid task or trace, or no prompt fits the servers.
    """
    if cfg.trace.path:
        renderer, limit = server_run.renderer, server_run.max_context
        return Load(*recorded_sessions(cfg.trace, cfg.trace.path, renderer, limit))
    items = server_run.prompts(cfg)
    return Load(prompts.sessions(items, cfg.load.gap), ", ".join(cfg.task), items[0] if items else None)


def run(cfg: LoadRunConfig, specs: Sequence[ServerSpec], load: Load, campaign: Campaign) -> list[Record]:
    """Sends the load to every server at every rate, if its row is missing.

    Args:
        cfg: the configuration.
        specs: the servers, with their models.
        load: the sessions.
        campaign: stores the rows.

    Returns:
        All rows of these servers and rates, old and new.
    """
    shared = shared_prefix(turn.prompt for session in load.sessions for turn in session.turns)
    content = digest({"sessions": [asdict(session) for session in load.sessions]})

    def measurements(_: ServerSpec) -> Iterator[Measurement]:
        for rate in cfg.rates:
            arrivals = replace(cfg.load, rate=rate)
            key = {"load": asdict(arrivals), "sessions": content}
            fields = {
                "rate": rate,
                "sessions": len(load.sessions),
                "most": arrivals.most,
                "source": load.source,
                "recorded": cfg.trace.path is not None,
                "shared_prefix": shared,
            }
            yield Measurement("load", f"rate {rate}", key, fields, partial(_load, arrivals, load.sessions))

    return campaign.run(specs, measurements, load.warm_up)


async def _load(cfg: LoadConfig, sessions: Sequence[Session], context: MeasurementContext) -> Record:
    numbers = await measure.under_load(context.server, sessions, cfg, context.cell, stage=context.stage)
    return {**numbers, "block": block_size(context.server)}
