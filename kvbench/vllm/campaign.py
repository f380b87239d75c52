"""Measures, on several servers one after another, the rows that a run's folder does not hold yet."""

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

from kvbench.config.secrets import masked
from kvbench.config.text import file_name
from kvbench.runs.fields import checked
from kvbench.runs.progress import ProgressDisplay, ProgressFactory, nothing_to_do
from kvbench.runs.store import Record, Store, digest
from kvbench.vllm.driver import Driver
from kvbench.vllm.errors import ServingError
from kvbench.vllm.launcher import Server, serve
from kvbench.vllm.prompts import ServedPrompt, numbers_per_token
from kvbench.vllm.servers import ServerSpec, cache_bits, device, note


@dataclass(frozen=True)
class MeasurementContext:
    """The arguments of a measurement.

    Attributes:
        server: a ready server without other clients.
        driver: of the server.
        cell: the row's id.
        stage: progress callback.
    """

    server: Server
    driver: Driver
    cell: str
    stage: Callable[[str], None]


@dataclass(frozen=True)
class Measurement:
    """One row to measure on a ready server.

    Attributes:
        row: kind of the row, as `answer` or `load`.
        name: its name in progress displays.
        key: everything that can change the numbers, apart from model and server.
        fields: further fields of the row.
        measure: measures, and returns the row's numbers.
    """

    row: str
    name: str
    key: Mapping[str, Any]
    fields: Mapping[str, Any]
    measure: Callable[[MeasurementContext], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True)
class Campaign:
    """A run's folder, and what all its rows have in common.

    Attributes:
        run_dir: the run's folder.
        version: of the experiment, raised when the same configuration would give other numbers.
        model: name of the model.
        folder: folder of its files.
        fingerprint: of these files.
        progress: makes the progress display.
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

    def cell_id(self, spec: ServerSpec, row: str, key: Mapping[str, Any]) -> str:
        """A row's id."""
        fixed = {"version": self.version, "model": self.fingerprint, "setup": spec.identity}
        return digest({**fixed, "row": row, **key})

    def run(
        self,
        specs: Sequence[ServerSpec],
        measurements: Callable[[ServerSpec], Iterable[Measurement]],
        warm_up: ServedPrompt | None,
    ) -> list[Record]:
        """Measures the missing rows.

        A server that refuses to start becomes a row with its error, except for the first one, with which the
        others are compared.

        Args:
            specs: the servers, with their models.
            measurements: the rows to measure on a server.
            warm_up: prompt of the first request, which is not measured; None for no such request.

        Returns:
            All rows of these servers and measurements, old and new.

        Raises:
            UserError: fixable by the user, as a setting that a server does not support.
        """
        for spec in specs:
            spec.check()
        wanted = {spec.label: self._by_cell(spec, measurements(spec)) for spec in specs}
        done = self.store.done()
        missing = {
            label: {cell: item for cell, item in items.items() if cell not in done}
            for label, items in wanted.items()
        }
        pending = [spec for spec in specs if missing[spec.label]]
        refused: list[Record] = []
        total = sum(map(len, missing.values()))
        if not total:
            nothing_to_do(sum(map(len, wanted.values())))
        with self.progress(total, total + len(pending)) as display:
            for spec in pending:
                items = missing[spec.label]
                display.start_prompt(f"{spec.label}: start")
                with ExitStack() as stack:
                    try:
                        log = self.run_dir / "logs" / f"{file_name(spec.label)}.log"
                        server = stack.enter_context(serve(spec.config, log))
                    except ServingError as error:
                        if spec is specs[0]:
                            raise
                        refused.append({"row": "setup", "setup": spec.label, "refused": masked(str(error))})
                        display.cells_done(len(items))
                        continue
                    asyncio.run(self._measure(spec, server, items, warm_up, display))
        cells = {cell for items in wanted.values() for cell in items}
        return [row for row in self.store.scan()[0] if row["cell"] in cells] + refused

    def _by_cell(self, spec: ServerSpec, measurements: Iterable[Measurement]) -> dict[str, Measurement]:
        """The measurements by the ids of their rows, with the server's facts first."""

        async def facts(context: MeasurementContext) -> Mapping[str, Any]:
            numbers = numbers_per_token(self.folder)
            bits = cache_bits(context.server, numbers)
            return {**context.server.facts, "numbers_per_token": numbers, "cache_bits": bits}

        items = [Measurement("setup", "facts", {}, {}, facts), *measurements]
        return {self.cell_id(spec, item.row, item.key): item for item in items}

    async def _measure(
        self,
        spec: ServerSpec,
        server: Server,
        items: Mapping[str, Measurement],
        warm_up: ServedPrompt | None,
        display: ProgressDisplay,
    ) -> None:
        async with server.driver() as driver:
            if warm_up is not None:
                display.stage("warm-up")
                # the first request is slower than all others; its salt keeps its prefix out of their cache
                await driver.complete(warm_up.prompt.ids, max_tokens=2, salt="warm-up", ignore_eos=True)
            for cell, item in items.items():
                display.start_prompt(f"{spec.label}: {item.name}")
                numbers = await item.measure(MeasurementContext(server, driver, cell, display.stage))
                self.store.append(
                    checked(
                        {
                            **numbers,
                            **item.fields,
                            **self._common_fields(spec, server),
                            "cell": cell,
                            "row": item.row,
                        }
                    )
                )
                display.cells_done(1)

    def _common_fields(self, spec: ServerSpec, server: Server) -> Record:
        return {
            "setup": spec.label,
            "kv_cache_dtype": spec.config.kv_cache_dtype,
            "scales": spec.scales,
            "model": self.model,
            "device": device(server),
            "note": note(server, spec),
            "vllm": server.facts["vllm"],
            "load_average": os.getloadavg()[0],
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


def of_kind(rows: Iterable[Record], kind: str) -> list[Record]:
    """Rows of one kind, without those of servers that did not start."""
    return [row for row in rows if row["row"] == kind and "refused" not in row]


def capacity(row: Record) -> int | None:
    """Tokens that fit into the cache, from a `setup` row; None if the server does not report it."""
    return row["capacity"]["tokens"] if row.get("capacity") else None
