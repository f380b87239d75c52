"""Measurements of `vllm_rag`: the Agentic-RAG workload on a self-hosted model, by prompt layout."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from kvbench.experiments.vllm_rag import workload as rag
from kvbench.experiments.vllm_rag.config import RagRunConfig, Workload
from kvbench.runs.store import Record
from kvbench.vllm import latency
from kvbench.vllm.blocks import shared_prefix
from kvbench.vllm.campaign import Campaign, Measurement, MeasurementContext
from kvbench.vllm.driver import Driver
from kvbench.vllm.errors import ServingError
from kvbench.vllm.metrics import Delta
from kvbench.vllm.servers import ServerSpec, block_size

VERSION = "vllm_rag 1"  # raised when the same configuration would give other numbers


def run(cfg: RagRunConfig, specs: Sequence[ServerSpec], campaign: Campaign) -> list[Record]:
    """Runs every layout on every server, with separate cached prefixes, if its row is missing.

    Args:
        cfg: the configuration.
        specs: the servers, with their models.
        campaign: stores the rows.

    Returns:
        All rows of these servers and layouts, old and new.
    """
    workload, retriever = cfg.workload, rag.Retriever(cfg.sizes)

    def measurements(_: ServerSpec) -> Iterator[Measurement]:
        for layout in cfg.layouts:
            key = {"layout": layout, "workload": asdict(workload)}
            function = partial(_run_layout, layout, workload, retriever)
            yield Measurement("rag", layout, key, {"layout": layout}, function)

    return campaign.run(specs, measurements, None)


async def _run_layout(
    layout: str, workload: Workload, retriever: rag.Retriever, context: MeasurementContext
) -> Record:
    server, driver = context.server, context.driver
    sent: list[dict[str, Any]] = []
    chat = rag.chat_model(
        server.url,
        await driver.model(),
        salt=context.cell,
        max_tokens=workload.max_tokens,
        timeout=server.cfg.timeout,
        sent=sent,
    )
    before = await driver.metrics()
    steps, turns = await asyncio.to_thread(
        rag.run, layout, chat, workload, retriever.tool, reports_cached=server.reports_cached
    )
    if not steps:
        # not one request succeeded: a fault of the server, not of the workload
        raise ServingError(f"{layout}: {turns[0].error}")
    return {
        "grades": workload.grades,
        "steps": [asdict(step) for step in steps],
        "turns": [asdict(turn) for turn in turns],
        **latency.by_server(Delta(before, await driver.metrics())),
        "shared_prefix": await _shared(driver, sent),
        "block": block_size(server),
    }


async def _shared(driver: Driver, sent: Sequence[Mapping[str, Any]]) -> int | None:
    """Tokens that the requests share, by the server's own tokenizer; None if it has no /tokenize for conversations."""
    try:
        return shared_prefix(
            [await driver.prompt_tokens(body["messages"], body.get("tools") or ()) for body in sent]
        )
    except ServingError:
        return None
