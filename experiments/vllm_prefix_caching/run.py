"""Measurements of `vllm_prefix_caching`: what automatic prefix caching hits, and how much time it saves."""

from __future__ import annotations

import asyncio
import datetime
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from kvbench.config.errors import UserError
from kvbench.experiments.vllm_prefix_caching.config import PrefixCase, PrefixConfig, cases
from kvbench.experiments.vllm_prefix_caching.random_prompts import TEXT, RandomPrompts, predicted_hits
from kvbench.models.fingerprint import fingerprint
from kvbench.models.load import locate
from kvbench.runs.fields import checked
from kvbench.runs.progress import ProgressDisplay, ProgressFactory, nothing_to_do
from kvbench.runs.store import Record, Store, digest
from kvbench.vllm import load, metrics
from kvbench.vllm.answers import Answer
from kvbench.vllm.arrivals import Session, SessionTurn
from kvbench.vllm.config import ServerConfig
from kvbench.vllm.driver import Driver
from kvbench.vllm.errors import BadAnswer
from kvbench.vllm.launcher import Server, serve
from kvbench.vllm.metrics import Delta
from kvbench.vllm.servers import ServerSpec, device

VERSION = 1  # raised when the same configuration would give other numbers
COUNTERS = {"hits": metrics.HITS, "queries": metrics.QUERIES, "preemptions": metrics.PREEMPTIONS}


def run(cfg: PrefixConfig, progress: ProgressFactory) -> list[Record]:
    """Measures the rows that the run's folder does not hold yet.

    Args:
        cfg: the configuration.
        progress: makes the progress display.

    Returns:
        All rows of the configured cases, old and new, and one row of the server.

    Raises:
        UserError: fixable by the user; errors of the server included.
    """
    serving, model = _server(cfg)
    common = {"version": VERSION, "model": model, "setup": ServerSpec("", serving).identity}
    by_cell = {digest({**common, **asdict(case)}): case for case in cases(cfg)}
    server_cell = digest({**common, "row": "server"})
    store = Store(cfg.run_dir)
    done = store.done()
    pending = {cell: case for cell, case in by_cell.items() if cell not in done}
    if not pending:
        nothing_to_do(len(by_cell))
    else:
        with (
            serve(serving, Path(cfg.run_dir) / "logs" / f"server-{os.getpid()}.log") as server,
            progress(len(pending), len(pending)) as display,
        ):
            asyncio.run(_measure_all(server, pending, server_cell, store, display))
    return [row for row in store.scan()[0] if row["cell"] in by_cell or row["cell"] == server_cell]


def _server(cfg: PrefixConfig) -> tuple[ServerConfig, str]:
    """The server with its model, and the model's fingerprint, "" for a server that already runs."""
    if cfg.serving.base_url:
        return cfg.serving, ""
    ServerSpec("", cfg.serving).check()
    folder = Path(cfg.serving.model) if cfg.serving.model else locate(cfg.model)
    name = cfg.serving.served_model or cfg.model.name
    return replace(cfg.serving, model=str(folder), served_model=name), fingerprint(folder)


async def _measure_all(
    server: Server,
    pending: Mapping[str, PrefixCase],
    server_cell: str,
    store: Store,
    display: ProgressDisplay,
) -> None:
    capacity = server.facts["capacity"]
    if capacity is None or not capacity["prefix_caching"]:
        raise UserError("serving: the server has no prefix caching, or does not report its block size")
    if server_cell not in store.done():
        facts = {**server.facts, "device": device(server)}
        store.append(checked({"cell": server_cell, "row": "server", **facts, "time": _now()}))
    async with server.driver(patience=0.0) as driver:
        vocabulary = list(dict.fromkeys(await driver.tokenize(TEXT)))
        requests = max(case.requests for case in pending.values())
        if requests + 1 > len(vocabulary):
            raise UserError(f"requests: {requests} is not allowed, give at most {len(vocabulary) - 1}")
        # the first request of a server is slower than all others
        await driver.complete(vocabulary, max_tokens=2, salt="warm-up", ignore_eos=True)
        for cell, case in pending.items():
            display.start_prompt(case.name)
            prompts = RandomPrompts(vocabulary, case.seed)
            # new for every try: a running server may still cache the prefixes of an interrupted one
            salt = f"{cell}-{secrets.token_hex(4)}"
            row = await _measure(driver, case, prompts, capacity["block_size"], salt)
            store.append(checked({"cell": cell, "row": case.kind, **asdict(case), **row, "time": _now()}))
            display.cells_done(1)


async def _measure(driver: Driver, case: PrefixCase, prompts: RandomPrompts, block: int, salt: str) -> Record:
    """Sends the requests of a case, and returns the fields of its row.

    Raises:
        BadAnswer: a request failed, so the remaining ones are not the configured load.
    """
    prefix = prompts.prefix(f"{case.prefix}/{case.suffix}/{case.concurrency}/{case.gap}", case.prefix)
    requests = [(*prefix, *prompts.suffix(number, case.suffix)) for number in range(case.requests)]
    answers: dict[tuple[int, ...], Answer] = {}

    async def send(turn: SessionTurn) -> Answer:
        own_salt = f"{salt}-{requests.index(turn.prompt)}" if case.way == "own" else salt
        answer = await driver.complete(
            turn.prompt, max_tokens=turn.max_tokens, salt=own_salt, ignore_eos=True
        )
        answers[turn.prompt] = answer
        return answer

    if case.way == "warm":
        filler = [*prefix, *prompts.suffix(case.requests, case.suffix)]
        await driver.complete(filler, max_tokens=1, salt=salt, ignore_eos=True)
    before, load_average = await driver.metrics(), os.getloadavg()[0]
    sessions = [
        Session(str(number), (SessionTurn(prompt, case.output),), at=number * case.gap)
        for number, prompt in enumerate(requests)
    ]
    outcomes = await load.run(sessions, send, max_concurrency=case.concurrency)
    delta = Delta(before, await driver.metrics())
    failed = [outcome.error for outcome in outcomes if not outcome.ok]
    if failed:
        raise BadAnswer(f"{len(failed)} of {case.requests} requests failed, the first with: {failed[0]}")
    counts = {name: delta.count(metric) for name, metric in COUNTERS.items()}
    given = [answers[prompt] for prompt in requests]
    return {
        "block": block,
        "predicted": 0 if case.way == "own" else predicted_hits(case.prefix, case.suffix, block),
        "prompt_tokens": given[0].prompt_tokens,
        "cached": [answer.cached_tokens for answer in given],
        **{name: count.value if count else None for name, count in counts.items()},
        "counters_reset": any(count.reset for count in counts.values() if count),
        "ttft_s": [answer.first_token for answer in given],
        # from when a request was due: queueing at the client counts
        "ttft_due_s": [outcome.ttft for outcome in outcomes],
        "per_token_s": [answer.per_token for answer in given],
        "answers": [None if answer.token_ids is None else list(answer.token_ids) for answer in given],
        "load_average": load_average,
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
