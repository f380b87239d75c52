"""The experiment `vllm_prefix_caching`: what automatic prefix caching finds, and what it saves.

Every cell sends requests that share a prefix and differ in their suffix, in three ways:

- `own`: each request has a salt of its own, so that nothing is ever found: the time without caching.
- `shared`: one salt, empty at the start: early requests may come before the first one has filled the cache.
- `warm`: one salt, filled by a request before.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import random
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kvbench.config.errors import UserError
from kvbench.models.load import ModelConfig
from kvbench.runs.progress import ProgressDisplay, ProgressFactory
from kvbench.runs.store import Record, Store, digest
from kvbench.vllm import load, metrics
from kvbench.vllm.arrivals import Session, Turn
from kvbench.vllm.config import ServingConfig
from kvbench.vllm.driver import Answer, Driver
from kvbench.vllm.errors import BadAnswer
from kvbench.vllm.launcher import Server, serve
from kvbench.vllm.metrics import Delta
from kvbench.vllm.servers import Setup, device

VERSION = 1  # raised when the same setting would give other numbers
Way = Literal["own", "shared", "warm"]
WAYS: tuple[Way, ...] = get_args(Way)
# its tokens are what prompts are drawn from
TEXT = (
    "The harbour was quiet before dawn. Three boats came in with the tide, and the men who had waited on the stone"
    " steps since midnight took the ropes without a word. Further up the hill a window opened; somebody shook a"
    " yellow cloth and looked for a long time at the grey water, as if counting what was missing there."
)


@dataclass(frozen=True, kw_only=True)
class PrefixConfig:
    """What is sent. Every product of prefix, suffix, concurrency and gap is measured in all three ways.

    Attributes:
        run_dir: where the results go.
        serving: the server.
        model: what a started server serves.
        prefix: tokens that the requests of a cell share.
        suffix: tokens that each has of its own.
        concurrency: requests under way at once.
        gap: seconds between two requests that become due.
        grain: further shared lengths, for one request after one other each, to show the grain of the hits.
        requests: requests per cell and way.
        output: tokens that each writes.
        seed: of the prompts.
    """

    run_dir: str
    serving: ServingConfig
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
            UserError: a number that makes no sense, or a prompt that the server does not take.
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
class Cell:
    """One setting, sent in one way."""

    prefix: int
    suffix: int
    concurrency: int
    gap: float
    way: Way
    requests: int
    output: int
    seed: int
    kind: Literal["grid", "grain"] = "grid"


@dataclass
class Prompts:
    """Prompts of random tokens from a small English vocabulary; their answers mean nothing."""

    vocabulary: Sequence[int]
    seed: int

    def shared(self, name: str, tokens: int) -> list[int]:
        """The prefix of a cell."""
        return random.Random(f"{self.seed}/{name}").choices(self.vocabulary, k=tokens)

    def own(self, number: int, tokens: int) -> list[int]:
        """The suffix of a request: no two begin with the same token, so that they share the prefix exactly."""
        rest = random.Random(f"{self.seed}/suffix/{number}").choices(self.vocabulary, k=tokens - 1)
        return [self.vocabulary[number], *rest]


def cells(cfg: PrefixConfig) -> Iterator[Cell]:
    """All cells in their order."""
    common: dict[str, Any] = {"requests": cfg.requests, "output": cfg.output, "seed": cfg.seed}
    for concurrency in cfg.concurrency:
        for gap in cfg.gap:
            for suffix in cfg.suffix:
                for prefix in cfg.prefix:
                    for way in WAYS:
                        yield Cell(prefix, suffix, concurrency, gap, way, **common)
    for prefix in cfg.grain:
        yield Cell(prefix, min(cfg.suffix), 1, 0.0, "warm", 1, 1, cfg.seed, kind="grain")


def predicted(prefix: int, suffix: int, block: int) -> int:
    """Tokens that a request finds of a prefix that is cached: whole blocks, and never the prompt's last token."""
    return min(prefix, prefix + suffix - 1) // block * block


def run(cfg: PrefixConfig, model: str, progress: ProgressFactory) -> list[Record]:
    """Measures what the run's folder does not hold yet.

    Args:
        cfg: the configuration.
        model: fingerprint of the model, "" for a server that runs already.
        progress: the class that shows progress.

    Returns:
        All rows of these cells, old and new, with one row of the server first.

    Raises:
        UserError: something that the user can mend, the server's faults included.
    """
    base = {"version": VERSION, "model": model, "setup": Setup("", cfg.serving).identity}
    named = {digest({**base, **asdict(cell)}): cell for cell in cells(cfg)}
    about = digest({**base, "row": "server"})
    store = Store(cfg.run_dir)
    pending = {name: cell for name, cell in named.items() if name not in store.done()}
    if pending:
        with (
            serve(cfg.serving, Path(cfg.run_dir) / "logs" / f"server-{os.getpid()}.log") as server,
            progress(len(pending), len(pending)) as shown,
        ):
            asyncio.run(_all(server, pending, about, store, shown))
    return [row for row in store.scan()[0] if row["cell"] in named or row["cell"] == about]


async def _all(
    server: Server, pending: dict[str, Cell], about: str, store: Store, shown: ProgressDisplay
) -> None:
    capacity = server.facts["capacity"]
    if capacity is None or not capacity["prefix_caching"]:
        raise UserError("serving: the server has no prefix caching, or does not say its block size")
    if about not in store.done():
        facts = {**server.facts, "device": device(server)}
        store.append({"cell": about, "row": "server", **facts, "time": _now()})
    async with server.driver(patience=0.0) as driver:
        vocabulary = list(dict.fromkeys(await driver.tokenize(TEXT)))
        most = max(cell.requests for cell in pending.values())
        if most + 1 > len(vocabulary):
            raise UserError(f"requests: {most} is not allowed, give at most {len(vocabulary) - 1}")
        # the first request of a server takes longer than all others
        await driver.complete(vocabulary, max_tokens=2, salt="warm-up", ignore_eos=True)
        for name, cell in pending.items():
            shown.start_prompt(
                f"{cell.prefix}+{cell.suffix}, {cell.concurrency} at once, gap {cell.gap:g} s, {cell.way}"
            )
            prompts = Prompts(vocabulary, cell.seed)
            # never twice the same: a running server still holds what a broken-off try has left
            salt = f"{name}-{secrets.token_hex(4)}"
            row = await _measure(driver, cell, prompts, capacity["block_size"], salt)
            store.append({"cell": name, "row": cell.kind, **asdict(cell), **row, "time": _now()})
            shown.cells_done(1)


async def _measure(driver: Driver, cell: Cell, prompts: Prompts, block: int, salt: str) -> Record:
    """Sends the requests of a cell; the fields of its row.

    Raises:
        BadAnswer: a request failed: what is left would not be the load that was asked for.
    """
    prefix = prompts.shared(f"{cell.prefix}/{cell.suffix}/{cell.concurrency}/{cell.gap}", cell.prefix)
    asked = [(*prefix, *prompts.own(number, cell.suffix)) for number in range(cell.requests)]
    answers: dict[tuple[int, ...], Answer] = {}

    async def send(turn: Turn) -> Answer:
        own = f"{salt}-{asked.index(turn.prompt)}" if cell.way == "own" else salt
        given = await driver.complete(turn.prompt, max_tokens=turn.max_tokens, salt=own, ignore_eos=True)
        answers[turn.prompt] = given
        return given

    if cell.way == "warm":
        filler = [*prefix, *prompts.own(cell.requests, cell.suffix)]
        await driver.complete(filler, max_tokens=1, salt=salt, ignore_eos=True)
    before, busy = await driver.metrics(), os.getloadavg()[0]
    sessions = [
        Session(str(number), (Turn(prompt, cell.output),), at=number * cell.gap)
        for number, prompt in enumerate(asked)
    ]
    outcomes = await load.run(sessions, send, most=cell.concurrency)
    delta = Delta(before, await driver.metrics())
    failed = [outcome.error for outcome in outcomes if not outcome.ok]
    if failed:
        raise BadAnswer(f"{len(failed)} of {cell.requests} requests failed, the first with: {failed[0]}")
    counted = {name: delta.count(metric) for name, metric in COUNTERS.items()}
    given = [answers[prompt] for prompt in asked]
    return {
        "block": block,
        "predicted": 0 if cell.way == "own" else predicted(cell.prefix, cell.suffix, block),
        "prompt_tokens": given[0].prompt_tokens,
        "cached": [answer.cached_tokens for answer in given],
        **{name: count.value if count else None for name, count in counted.items()},
        "counters_reset": any(count.reset for count in counted.values() if count),
        "ttft_s": [answer.first_token for answer in given],
        # from the moment that a request was due: waiting for a free place counts
        "ttft_due_s": [outcome.ttft for outcome in outcomes],
        "per_token_s": [answer.per_token for answer in given],
        "answers": [None if a.token_ids is None else list(a.token_ids) for a in given],
        "load_average": busy,
    }


COUNTERS = {"hits": metrics.HITS, "queries": metrics.QUERIES, "preemptions": metrics.PREEMPTIONS}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
