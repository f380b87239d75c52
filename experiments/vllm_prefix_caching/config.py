"""Configuration of `vllm_prefix_caching`, and the cases that it expands into.

Requests share a prefix and differ in their suffix. Every case sends them in one of three ways:

- `own`: each request has a salt of its own, so that it never hits the cache: the time without caching.
- `shared`: one salt, nothing cached at the start: early requests may arrive before the first one has filled the cache.
- `warm`: one salt, and an earlier request has filled the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kvbench.config.errors import UserError
from kvbench.models.load import ModelConfig
from kvbench.vllm.config import ServerConfig

Way = Literal["own", "shared", "warm"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True, kw_only=True)
class PrefixConfig:
    """The configuration. Every combination of prefix, suffix, concurrency and gap is measured in all three ways.

    Attributes:
        run_dir: where the results go.
        serving: the server.
        model: the model that a started server serves.
        prefix: tokens that the requests of a case share.
        suffix: tokens of each request after the prefix.
        concurrency: limit of requests in flight.
        gap: seconds between the times at which requests are due.
        grain: further shared lengths, with one request after one other each, to show the granularity of the hits.
        requests: requests per case.
        output: generated tokens per request.
        seed: of the prompts.
    """

    run_dir: str
    serving: ServerConfig
    model: ModelConfig
    prefix: tuple[int, ...] = (256, 1024, 2048)
    suffix: tuple[int, ...] = (16, 256)
    concurrency: tuple[int, ...] = (1, 4)
    gap: tuple[float, ...] = (0.0, 2.0)
    grain: tuple[int, ...] = ()
    requests: int = 6
    output: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            UserError: a number that is not allowed, or a prompt beyond the server's context.
        """
        for name in ("prefix", "suffix", "concurrency", "grain"):
            if any(value < 1 for value in getattr(self, name)):
                raise UserError(f"{name}: {list(getattr(self, name))} is not allowed, give 1 or more")
        for name in ("prefix", "suffix", "concurrency", "gap"):
            if not getattr(self, name):
                raise UserError(f"{name}: empty, give at least one value")
        if any(value < 0 for value in self.gap):
            raise UserError(f"gap: {list(self.gap)} is not allowed, give 0 or more")
        if min(self.requests, self.output) < 1:
            raise UserError("requests, output: give 1 or more")
        longest = max((*self.prefix, *self.grain)) + max(self.suffix) + self.output
        if not self.serving.base_url and longest > self.serving.max_model_len:
            raise UserError(
                f"prefix: {max(self.prefix)} with suffix and output makes {longest} tokens, more than"
                f" serving.max_model_len={self.serving.max_model_len}"
            )


@dataclass(frozen=True)
class PrefixCase:
    """One combination of settings, sent in one way; a row of the results."""

    prefix: int
    suffix: int
    concurrency: int
    gap: float
    way: Way
    requests: int
    output: int
    seed: int
    kind: Literal["grid", "grain"] = "grid"

    @property
    def name(self) -> str:
        """Name in progress displays."""
        return f"{self.prefix}+{self.suffix}, {self.concurrency} at once, gap {self.gap:g} s, {self.way}"


def cases(cfg: PrefixConfig) -> Iterator[PrefixCase]:
    """All cases, in order."""
    common: dict[str, Any] = {"requests": cfg.requests, "output": cfg.output, "seed": cfg.seed}
    for concurrency in cfg.concurrency:
        for gap in cfg.gap:
            for suffix in cfg.suffix:
                for prefix in cfg.prefix:
                    for way in WAYS:
                        yield PrefixCase(prefix, suffix, concurrency, gap, way, **common)
    for prefix in cfg.grain:
        yield PrefixCase(prefix, min(cfg.suffix), 1, 0.0, "warm", 1, 1, cfg.seed, kind="grain")
