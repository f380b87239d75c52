"""What the experiments measure on a ready server: answers to prompts, log probabilities, a load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvbench.config.errors import UserError
from kvbench.vllm import latency, load, logprob_kl
from kvbench.vllm.arrivals import Session, Turn, poisson
from kvbench.vllm.driver import Answer, Driver
from kvbench.vllm.launcher import Server
from kvbench.vllm.metrics import Delta
from kvbench.vllm.prompts import Asked

Top = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How prompts arrive.

    Attributes:
        rate: sessions per second, Poisson; null = all at once.
        most: requests under way at once.
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


async def answer(driver: Driver, asked: Asked, salt: str) -> tuple[Answer, dict[str, Any]]:
    """One greedy answer, alone on the server.

    Args:
        driver: of the server.
        asked: the prompt.
        salt: decides which cached prefixes it may find.

    Returns:
        The answer, and a row's fields about it.
    """
    given = await driver.complete(asked.prompt.ids, max_tokens=asked.sample.max_new_tokens, salt=salt)
    if given.prompt_tokens != len(asked.prompt.ids):
        raise UserError(
            f"model: {asked.name} has {len(asked.prompt.ids)} tokens, the server counts {given.prompt_tokens}; "
            "give the model that the server serves"
        )
    return given, {
        "score": asked.task.score(given.text, asked.sample),
        "output": given.text,
        "output_ids": None if given.token_ids is None else list(given.token_ids),
        "stop": given.finish_reason,
        "cached_tokens": given.cached_tokens,
        "output_tokens": given.output_tokens,
        "ttft_s": given.first_token,
        "per_token_s": given.per_token,
    }


async def scored(driver: Driver, asked: Asked, continuation: Sequence[int], top: int, salt: str) -> Top:
    """Log probabilities of the likeliest tokens before every token of prompt + continuation but the first."""
    found = await driver.score([*asked.prompt.ids, *continuation], top=top, salt=salt)
    return [place for place in found.top[1:] if place is not None]


def distance(reference: Top, method: Top, prompt_tokens: int) -> dict[str, Any]:
    """Closeness of two servers over the prompt, and over the reference's own continuation, as a row's fields.

    Args:
        reference: of `scored` on the reference.
        method: of `scored` on the other server, same tokens.
        prompt_tokens: how many of them are the prompt; the last of these is where the answer is decided.
    """
    parts = {"prompt": slice(0, prompt_tokens - 1), "answer": slice(prompt_tokens - 1, None)}
    row: dict[str, Any] = {}
    for name, part in parts.items():
        found = logprob_kl.compare(reference[part], method[part])
        row |= {f"{name}_{key}": value for key, value in vars(found).items()}
    return row


def save(path: Path, top: Top) -> None:
    """Keeps what `scored` gave, for other servers to be compared with later."""
    width = max(map(len, top))
    # places differ in length by one: the text's own token comes on top when it is not among the likeliest
    ids_TK = np.full((len(top), width), -1, dtype=np.int32)
    logprobs_TK = np.full((len(top), width), -np.inf)
    for row, place in enumerate(top):
        for column, (token, logprob) in enumerate(place.items()):
            ids_TK[row, column], logprobs_TK[row, column] = int(token.removeprefix("token_id:")), logprob
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, ids=ids_TK, logprobs=logprobs_TK)


def read(path: Path) -> list[dict[str, float]]:
    """What `save` kept."""
    with np.load(path) as kept:
        ids_TK, logprobs_TK = kept["ids"], kept["logprobs"]
    return [
        {f"token_id:{token}": float(value) for token, value in zip(ids, values, strict=True) if token >= 0}
        for ids, values in zip(ids_TK, logprobs_TK, strict=True)
    ]


async def under_load(
    server: Server,
    sessions: Sequence[Session],
    cfg: LoadConfig,
    salt: str,
    stage: Callable[[str], None] | None = None,
) -> tuple[list[load.Outcome], dict[str, Any]]:
    """Sends sessions as they arrive; every answer has its full length.

    Args:
        server: a ready one that nobody else uses: its counters are read before and after.
        sessions: what arrives; arrivals that they have already are kept where `cfg.rate` is null.
        cfg: how.
        salt: keeps the load's cached prefixes apart from earlier ones.
        stage: is told how many turns are done.

    Returns:
        Every turn, and a row's fields: the client's view, and the server's own counters beside it.
    """
    arriving = list(sessions) if cfg.rate is None else poisson(sessions, cfg.rate, cfg.seed)
    async with server.driver(patience=0.0) as driver:

        async def send(turn: Turn) -> Answer:
            return await driver.complete(turn.prompt, max_tokens=turn.max_tokens, salt=salt, ignore_eos=True)

        before = await driver.metrics()
        outcomes = await load.run(arriving, send, most=cfg.most, stage=stage)
        counted = latency.by_server(Delta(before, await driver.metrics()))
    errors = sorted({outcome.error for outcome in outcomes if outcome.error})
    return outcomes, {**latency.summary(outcomes, cfg.ttft_limit), **counted, "errors": errors}
