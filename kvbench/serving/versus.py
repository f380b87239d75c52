"""The experiment `vllm_vs_compression`: vLLM's side of it; the methods' own runs are kvbench's usual ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvbench.serving import measure
from kvbench.serving.asked import Asked
from kvbench.serving.campaign import Campaign, Job
from kvbench.serving.driver import Driver
from kvbench.serving.launcher import Server
from kvbench.serving.setups import Setup
from kvbench.store import Record

VERSION = "vllm_vs_compression 1"  # raised when the same setting would give other numbers


@dataclass(frozen=True, kw_only=True)
class ServersConfig:
    """The keys of the experiment that are vLLM's; everything else is an accuracy run's.

    Attributes:
        run_dir: where the results go.
        serving: keys of `ServingConfig` for all servers.
        setups: per label the keys that differ; the first is vLLM's dense. Prefix caching is measured on it.
    """

    run_dir: str
    serving: dict[str, Any]
    setups: dict[str, Any]


def run(chosen: Sequence[Setup], asked: Sequence[Asked], campaign: Campaign) -> list[Record]:
    """Answers every prompt twice on every server: cold, and with its prefix in the cache.

    Args:
        chosen: the servers, with their models.
        asked: the prompts.
        campaign: where rows go.

    Returns:
        All rows of these servers and prompts, old and new.

    Raises:
        UserError: something that the user can mend.
    """

    def jobs(setup: Setup) -> Iterator[Job]:
        for item in asked:
            key = {"prompt": item.prompt.hash, "task": item.task.identity()}
            yield Job("answer", item.name, key, item.fields(), partial(_twice, item))

    return campaign.run(chosen, jobs, asked[0])


async def _twice(item: Asked, server: Server, driver: Driver, cell: str) -> Record:
    _, cold = await measure.answer(driver, item, salt=cell)
    _, warm = await measure.answer(driver, item, salt=cell)
    names = ("score", "ttft_s", "per_token_s", "cached_tokens")
    return {
        **cold,
        **{f"warm_{name}": warm[name] for name in names},
        "warm_same": warm["output"] == cold["output"],
    }
