"""Measurements on several servers, one after the other, of what the run's folder does not hold yet."""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kvbench.runs.progress import ProgressDisplay, ProgressFactory
from kvbench.runs.store import Record, Store, digest
from kvbench.vllm.driver import Driver
from kvbench.vllm.errors import ServingError
from kvbench.vllm.launcher import Server, serve
from kvbench.vllm.prompts import Asked, numbers_per_token
from kvbench.vllm.servers import Setup, cache_bits, device, note


@dataclass(frozen=True)
class Ready:
    """What a job is given.

    Attributes:
        server: a ready one that nobody else uses.
        driver: of the server.
        cell: the row's id.
        stage: shows how far the job is.
    """

    server: Server
    driver: Driver
    cell: str
    stage: Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One row to measure on a ready server.

    Attributes:
        row: its kind, as `answer` or `load`.
        name: for progress.
        key: everything but model and server that can change the number.
        fields: what the row says of it.
        do: measures, and returns the row's numbers.
    """

    row: str
    name: str
    key: Mapping[str, Any]
    fields: Mapping[str, Any]
    do: Callable[[Ready], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True)
class Campaign:
    """Where rows go, and what all of them have in common.

    Attributes:
        run_dir: the run's folder.
        version: of the experiment, raised when the same setting would give other numbers.
        model: name of the model.
        folder: where its files are.
        fingerprint: of these files.
        progress: the class that shows progress.
    """

    run_dir: Path
    version: str
    model: str
    folder: Path
    fingerprint: str
    progress: ProgressFactory

    @cached_property
    def store(self) -> Store:
        """The rows of the run's folder."""
        return Store(self.run_dir)

    def cell(self, setup: Setup, row: str, key: Mapping[str, Any]) -> str:
        """A row's id."""
        fixed = {"version": self.version, "model": self.fingerprint, "setup": setup.identity}
        return digest({**fixed, "row": row, **key})

    def run(
        self, chosen: Sequence[Setup], jobs: Callable[[Setup], Iterable[Job]], warm: Asked | None
    ) -> list[Record]:
        """Measures what is missing.

        A server that refuses its setup becomes a row that says so, except for the first one, with which the others
        are compared.

        Args:
            chosen: the servers, with their models.
            jobs: what is measured on a setup.
            warm: prompt of the first request, which is not measured; None for none.

        Returns:
            All rows of these setups and jobs, old and new.

        Raises:
            UserError: something that the user can mend.
        """
        for setup in chosen:
            setup.check()
        wanted = {setup.label: self._named(setup, jobs(setup)) for setup in chosen}
        done = self.store.done()
        missing = {
            label: {cell: job for cell, job in own.items() if cell not in done}
            for label, own in wanted.items()
        }
        pending = [setup for setup in chosen if missing[setup.label]]
        refused: list[Record] = []
        total = sum(map(len, missing.values()))
        with self.progress(total, total + len(pending)) as shown:
            for setup in pending:
                own = missing[setup.label]
                shown.start_prompt(f"{setup.label}: start")
                with ExitStack() as stack:
                    try:
                        log = self.run_dir / "logs" / f"{setup.label}.log"
                        server = stack.enter_context(serve(setup.serving, log))
                    except ServingError as error:
                        if setup is chosen[0]:
                            raise
                        refused.append({"row": "setup", "setup": setup.label, "refused": str(error)})
                        shown.cells_done(len(own))
                        continue
                    asyncio.run(self._measure(setup, server, own, warm, shown))
        asked = {cell for own in wanted.values() for cell in own}
        return [row for row in self.store.scan()[0] if row["cell"] in asked] + refused

    def _named(self, setup: Setup, jobs: Iterable[Job]) -> dict[str, Job]:
        async def facts(ready: Ready) -> Mapping[str, Any]:
            numbers = numbers_per_token(self.folder)
            bits = cache_bits(ready.server, numbers)
            return {**ready.server.facts, "numbers_per_token": numbers, "cache_bits": bits}

        every = [Job("setup", "facts", {}, {}, facts), *jobs]
        return {self.cell(setup, job.row, job.key): job for job in every}

    async def _measure(
        self,
        setup: Setup,
        server: Server,
        jobs: Mapping[str, Job],
        warm: Asked | None,
        shown: ProgressDisplay,
    ) -> None:
        async with server.driver() as driver:
            if warm is not None:
                shown.stage("warm-up")
                # the first request takes longer than all others; its prefix stays out of their reach
                await driver.complete(warm.prompt.ids, max_tokens=2, salt="warm-up", ignore_eos=True)
            for cell, job in jobs.items():
                shown.start_prompt(f"{setup.label}: {job.name}")
                numbers = await job.do(Ready(server, driver, cell, shown.stage))
                self.store.append(
                    {**numbers, **job.fields, **self._fixed(setup, server), "cell": cell, "row": job.row}
                )
                shown.cells_done(1)

    def _fixed(self, setup: Setup, server: Server) -> Record:
        return {
            "setup": setup.label,
            "kv_cache_dtype": setup.serving.kv_cache_dtype,
            "scales": setup.scales,
            "model": self.model,
            "device": device(server),
            "note": note(server, setup),
            "vllm": server.facts["vllm"],
            "load_average": os.getloadavg()[0],
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


def of_kind(rows: Iterable[Record], kind: str) -> list[Record]:
    """Rows of one kind, without those of servers that did not start."""
    return [row for row in rows if row["row"] == kind and "refused" not in row]


def capacity(row: Record) -> int | None:
    """Tokens that the cache of a `setup` row holds; None where the server does not say."""
    return row["capacity"]["tokens"] if row.get("capacity") else None
