"""The experiment `vllm_vs_compression`: vLLM's side of it; the methods' own runs are kvbench's usual ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from kvbench.runs.store import Record
from kvbench.vllm import measure
from kvbench.vllm.campaign import Campaign, Job, Ready
from kvbench.vllm.prompts import Asked
from kvbench.vllm.servers import Setup

VERSION = "vllm_vs_compression 1"  # raised when the same setting would give other numbers


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


async def _twice(item: Asked, ready: Ready) -> Record:
    _, cold = await measure.answer(ready.driver, item, salt=ready.cell)
    _, warm = await measure.answer(ready.driver, item, salt=ready.cell)
    names = ("score", "ttft_s", "per_token_s", "cached_tokens")
    return {
        **cold,
        **{f"warm_{name}": warm[name] for name in names},
        "warm_same": warm["output"] == cold["output"],
    }
