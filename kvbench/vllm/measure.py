"""Measurements on a ready server that several experiments share: the answer to a prompt, and a load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvbench.config.errors import UserError
from kvbench.vllm import latency, load
from kvbench.vllm.answers import Answer
from kvbench.vllm.arrivals import Session, SessionTurn, poisson
from kvbench.vllm.driver import Driver
from kvbench.vllm.launcher import Server
from kvbench.vllm.metrics import Delta
from kvbench.vllm.prompts import ServedPrompt


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How prompts arrive.

    Attributes:
        rate: sessions per second, Poisson; null = all at once.
        most: limit of requests in flight.
        ttft_limit: seconds to the first token within which an answer counts for goodput.
        gap: seconds between an answer and the next turn of its session.
        seed: of the arrivals.
    """

    rate: float | None = 1.0
    most: int = 64
    ttft_limit: float = 2.0
    gap: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rate", "most", "ttft_limit"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name}: {value} is not allowed, give more than 0")
        if self.gap < 0:
            raise UserError(f"gap: {self.gap} is not allowed, give 0 or more")


async def answer_alone(driver: Driver, item: ServedPrompt, salt: str) -> tuple[Answer, dict[str, Any]]:
    """One greedy answer, with no other request on the server.

    Args:
        driver: of the server.
        item: the prompt.
        salt: selects the cached prefixes that the request can hit.

    Returns:
        The answer, and its fields of a row.
    """
    answer = await driver.complete(item.prompt.ids, max_tokens=item.sample.max_new_tokens, salt=salt)
    if answer.prompt_tokens != len(item.prompt.ids):
        raise UserError(
            f"model: {item.name} has {len(item.prompt.ids)} tokens, the server counts {answer.prompt_tokens}; "
            "give the model that the server serves"
        )
    # the server ends an answer at end tokens only
    text = item.sample.stop.cut_text(answer.text)
    return answer, {
        "score": item.task.score(text, item.sample),
        "output": text,
        "output_ids": None if answer.token_ids is None else list(answer.token_ids),
        "stop": answer.finish_reason,
        "cached_tokens": answer.cached_tokens,
        "output_tokens": answer.output_tokens,
        "ttft_s": answer.first_token,
        "per_token_s": answer.per_token,
    }


async def under_load(
    server: Server,
    sessions: Sequence[Session],
    cfg: LoadConfig,
    salt: str,
    stage: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Sends sessions as they arrive; every answer has its full length.

    Args:
        server: a ready server without other clients: its counters are read before and after.
        sessions: the sessions; their own arrivals are kept if `cfg.rate` is null.
        cfg: how they arrive.
        salt: separates the load's cached prefixes from earlier ones.
        stage: progress callback.

    Returns:
        Fields of a row: the client's view, and the server's own counters.
    """
    arriving = list(sessions) if cfg.rate is None else poisson(sessions, cfg.rate, cfg.seed)
    async with server.driver(patience=0.0) as driver:

        async def send(turn: SessionTurn) -> Answer:
            return await driver.complete(turn.prompt, max_tokens=turn.max_tokens, salt=salt, ignore_eos=True)

        before = await driver.metrics()
        outcomes = await load.run(arriving, send, max_concurrency=cfg.most, stage=stage)
        by_server = latency.by_server(Delta(before, await driver.metrics()))
    errors = sorted({outcome.error for outcome in outcomes if outcome.error})
    return {**latency.summary(outcomes, cfg.ttft_limit), **by_server, "errors": errors}
