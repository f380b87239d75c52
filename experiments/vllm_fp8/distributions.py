"""Next-token distributions of servers: measured, kept in the run's folder, and compared with the reference's."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvbench.config.files import write
from kvbench.experiments.vllm_fp8 import logprob_kl
from kvbench.vllm.driver import Driver
from kvbench.vllm.errors import BadAnswer
from kvbench.vllm.prompts import ServedPrompt

TopLogprobs = Sequence[Mapping[str, float]]


async def top_logprobs(
    driver: Driver, item: ServedPrompt, continuation: Sequence[int], top: int, salt: str
) -> TopLogprobs:
    """Log probabilities of the most probable tokens, before every token of prompt + continuation except the first."""
    found = await driver.score([*item.prompt.ids, *continuation], top=top, salt=salt)
    return [position for position in found.top[1:] if position is not None]


def distance_fields(reference: TopLogprobs, method: TopLogprobs, prompt_tokens: int) -> dict[str, Any]:
    """Fields of a row: the distance from the reference over the prompt, and over the reference's own answer.

    Args:
        reference: of `top_logprobs` on the reference.
        method: of `top_logprobs` on the other server, same tokens.
        prompt_tokens: number of prompt tokens; the distribution before the answer counts for the answer.

    Raises:
        BadAnswer: the log probabilities are none.
    """
    parts = {"prompt": slice(0, prompt_tokens - 1), "answer": slice(prompt_tokens - 1, None)}
    row: dict[str, Any] = {}
    for name, part in parts.items():
        try:
            found = logprob_kl.compare_logprobs(reference[part], method[part])
        except ArithmeticError as error:
            raise BadAnswer(f"logprobs of the {name}: {error}") from None
        row |= {f"{name}_{key}": value for key, value in vars(found).items()}
    return row


def save(path: Path, top: TopLogprobs) -> None:
    """Keeps log probabilities for later comparisons with other servers."""
    width = max(map(len, top))
    # positions differ in length by one: the text's own token is added if it is not among the most probable
    ids_TK = np.full((len(top), width), -1, dtype=np.int32)
    logprobs_TK = np.full((len(top), width), -np.inf)
    for row, position in enumerate(top):
        for column, (token, logprob) in enumerate(position.items()):
            ids_TK[row, column], logprobs_TK[row, column] = int(token.removeprefix("token_id:")), logprob
    packed = io.BytesIO()
    np.savez_compressed(packed, ids=ids_TK, logprobs=logprobs_TK)
    write(path, packed.getvalue())


def read(path: Path) -> list[dict[str, float]]:
    """Log probabilities written by `save`."""
    with np.load(path) as kept:
        ids_TK, logprobs_TK = kept["ids"], kept["logprobs"]
    return [
        {f"token_id:{token}": float(value) for token, value in zip(ids, values, strict=True) if token >= 0}
        for ids, values in zip(ids_TK, logprobs_TK, strict=True)
    ]
