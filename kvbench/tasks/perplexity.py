"""Perplexity of a long text, judged on the compressed cache of the text before it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from kvbench.config.errors import UserError
from kvbench.config.scales import LOWER
from kvbench.tasks.base import Family, register
from kvbench.tasks.prompt import Renderer, Sample

#: ends of the ranges of positions that are summed up by themselves
_EDGES = (32, 128)


@register("perplexity")
@dataclass(frozen=True, kw_only=True)
class Perplexity(Family):
    """The loss of the tokens that follow a compressed text: any UTF-8 file, in windows that do not overlap.

    A window's first `length - continuation` tokens are prefilled and compressed; the others are fed one by one as
    decode steps, and the score is their mean negative log-likelihood in nats. Windows begin with what the tokenizer
    puts in front of a text. What it does not show is retrieval: the KL from dense and the other tasks do.

    Attributes:
        path: the file.
        continuation: tokens that are judged. StreamingLLM's experiment is a long one behind a short context.
        samples: number of windows; None for all.
    """

    seeded: ClassVar[bool] = False
    from_file: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("path",)
    source: ClassVar[str] = "own"
    lengths: ClassVar[str] = "any"
    scored: ClassVar[str] = "negative log-likelihood per token, lower is better; perplexity and bits per byte"
    needs: ClassVar[str] = "path=FILE, any text"

    path: str | None = None
    continuation: int = 512
    samples: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise UserError("path: give a text file")
        if self.continuation < 1:
            raise UserError(
                f"continuation: {self.continuation} is not allowed, give a positive number of tokens"
            )
        if min(self.length) <= self.continuation:
            raise UserError(
                f"continuation: {self.continuation} leaves no context in length {list(self.length)}"
            )

    @property
    def metric(self) -> str:
        return f"nats per token{LOWER}"

    @property
    def aggregate(self) -> Mapping[str, str]:
        return {"nll": "exp_weighted:tokens", "bits": "ratio:bytes"}

    @property
    def data_digest(self) -> str:
        return self._text()[1]

    @property
    def data_source(self) -> str:
        return Path(str(self.path)).name

    def _text(self) -> tuple[str, str]:
        assert self.path is not None
        try:
            file = Path(self.path).expanduser()
            stat = file.stat()
            return _read(file, stat.st_mtime_ns, stat.st_size)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"path: {self.path} cannot be read as UTF-8 text ({error})") from None

    def count(self, length: int, renderer: Renderer) -> int:
        return len(_offsets(renderer, self._text()[0])) // length

    def sample(self, index: int, seed: int, length: int, renderer: Renderer) -> Sample:
        text = self._text()[0]
        offsets = _offsets(renderer, text)
        first = index * length
        start, middle, end = (
            offsets[first][0], offsets[first + length - self.continuation][0], offsets[first + length - 1][1]
        )  # fmt: skip
        judged = text[middle:end]
        sample = Sample(
            text[start:middle], "", "", (), self.continuation, {"window": index, "bytes": len(judged.encode())},
            plain=True, context_known=False, continuations=(judged,),
        )  # fmt: skip
        # tokens at both ends may merge differently
        tokens = len(renderer.continuation(renderer.render(sample), judged))
        if renderer.limit is not None and renderer.count(sample) + tokens > renderer.limit:
            raise UserError(
                f"length: {length} and what stands before a text is beyond the model's {renderer.limit}"
            )
        return replace(sample, max_new_tokens=tokens)

    def score(self, output: str, sample: Sample) -> float:
        raise NotImplementedError

    def judged(
        self, log_probs: Sequence[Sequence[float]], sample: Sample
    ) -> tuple[str, dict[str, float | list[float]]]:
        (values,) = log_probs
        losses = [-value for value in values]
        nll = math.fsum(losses)
        found: dict[str, float | list[float]] = {
            self.metric: nll / len(losses), "nll": nll, "tokens": float(len(losses)),
            "bits": nll / math.log(2), "bytes": float(sample.meta["bytes"]),
        }  # fmt: skip
        low = 0
        for high in (*_EDGES, len(losses)):
            if part := losses[low:high]:
                name = f"positions {low} to {high - 1}" if high in _EDGES else f"positions from {low}"
                found[f"nats per token, {name}"] = math.fsum(part) / len(part)
            low = high
        return "", found


@lru_cache(maxsize=2)
def _read(file: Path, mtime_ns: int, size: int) -> tuple[str, str]:
    """A file's text, and its SHA-256."""
    data = file.read_bytes()
    text = data.decode("utf-8-sig")
    if not text.strip():
        raise UserError(f"path: {file} is empty")
    return text, hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=2)
def _offsets(renderer: Renderer, text: str) -> list[tuple[int, int]]:
    """Where each token of a text is; a renderer is one tokenizer."""
    return renderer.offsets(text)
