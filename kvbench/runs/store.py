"""The store: one folder per run, one append-only file of cells per worker; a committed run has them in one packed file.

A line of `cells-<worker>.jsonl` is one finished cell, a line of `failures-<worker>.jsonl` one attempt that failed.
Workers never touch each other's files, so any number of them can share a folder, and a killed worker loses at most
the line that it was writing.
"""

import gzip
import hashlib
import io
import json
import os
import secrets
import socket
import warnings
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from kvbench.config.errors import UserError
from kvbench.config.files import append, write
from kvbench.config.numbers import read_json
from kvbench.config.reading import file_text, read_yaml
from kvbench.config.text import counted
from kvbench.runs import plans
from kvbench.runs.columns import Columns
from kvbench.runs.schema import SCHEMA

Record = dict[str, Any]


class Store:
    """Append-only results of one run.

    Args:
        run_dir: the run's folder, created by the first write.
        worker: name of this process's file. The default is unique per object, so that a restarted container
            with the same host name and process id does not write into its predecessor's file.
    """

    def __init__(self, run_dir: str | Path, worker: str | None = None) -> None:
        self.run_dir = Path(run_dir)
        self.worker = worker or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    @property
    def path(self) -> Path:
        """This worker's file."""
        return self.run_dir / f"cells-{self.worker}.jsonl"

    @property
    def failures_path(self) -> Path:
        """This worker's file of failures."""
        return self.run_dir / f"failures-{self.worker}.jsonl"

    @property
    def config_path(self) -> Path:
        """The resolved configuration of the last command that wrote here."""
        return self.run_dir / "config.yaml"

    def append(self, record: Mapping[str, Any]) -> None:
        """Stores one finished cell; it is on disk when this returns."""
        self.extend([record])

    def extend(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Stores finished cells, all or none; on disk when this returns.

        Raises:
            TypeError: a value is not plain JSON (a tensor, a numpy scalar).
            ValueError: a number is NaN or infinite.
        """
        self._append(self.path, records)

    def extend_failures(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Stores attempts that failed, as `extend` does finished cells."""
        self._append(self.failures_path, records)

    def _append(self, path: Path, records: Iterable[Mapping[str, Any]]) -> None:
        lines = [
            json.dumps({"schema": SCHEMA} | dict(record), ensure_ascii=False, allow_nan=False).encode()
            + b"\n"
            for record in records
        ]
        if lines:
            with self._writing():
                append(path, lines)

    def done(self) -> set[str]:
        """Ids of the finished cells of all workers; empty for a folder that does not exist yet."""
        problems: list[str] = []
        found = {record["cell"] for record in self._lines("cells", problems)}
        for problem in problems:
            warnings.warn(problem, stacklevel=2)
        return found

    def read(self) -> pd.DataFrame:
        """All finished cells of all workers, one row per cell; of duplicates the first is kept."""
        return pd.DataFrame(self._warned_scan())

    def columns(self, having: str, without: Container[str] = ()) -> tuple[Columns, list[str]]:
        """Finished cells as `scan` gives them, by field, in a fraction of its memory: equal values are one object.

        Args:
            having: a field; rows without it are left out.
            without: fields that are left out.

        Raises:
            UserError: as for `scan`.
        """
        columns, problems = Columns(without), list[str]()
        for record in self._lines("cells", problems):
            if having in record:
                columns.add(record)
        return columns, problems

    def scan(self) -> tuple[list[Record], list[str]]:
        """Finished cells, and a sentence for each line that could not be read.

        Lines without a schema version get version 1.

        Raises:
            UserError: the folder or a file in it cannot be read.
        """
        records: dict[str, Record] = {}
        problems: list[str] = []
        for record in self._lines("cells", problems):
            records.setdefault(record["cell"], record)
        return list(records.values()), problems

    def failures(self) -> tuple[list[Record], list[str]]:
        """The last failed attempt of each cell that is not finished, and a sentence for each unreadable line.

        Raises:
            UserError: as for `scan`.
        """
        failed: dict[str, Record] = {}
        problems: list[str] = []
        for record in self._lines("failures", problems):
            before = failed.get(record["cell"])
            if before is None or str(before.get("time", "")) <= str(record.get("time", "")):
                failed[record["cell"]] = record
        done = {record["cell"] for record in self._lines("cells", [])} if failed else set()
        return [record for cell, record in failed.items() if cell not in done], problems

    def _lines(self, kind: str, problems: list[str]) -> Iterator[Record]:
        """Records of all workers' files of a kind, in the order of the files' names."""
        for path in self.files(kind):
            for record, _ in self.lines_of(path, problems):
                yield record

    def files(self, kind: str) -> list[Path]:
        """All workers' files of a kind, "cells" or "failures", by name."""
        return sorted(path for end in ("", ".gz") for path in self.run_dir.glob(f"{kind}-*.jsonl{end}"))

    def lines_of(self, path: Path, problems: list[str], start: int = 0) -> Iterator[tuple[Record, int]]:
        """Records of a file, each with where the next whole line begins.

        Args:
            path: the file.
            problems: gets a sentence for each line that could not be read.
            start: byte to begin at, the first one of a line; the records of a packed file have no other.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            newer = 0
            for record, end in _read_lines(path, problems, start):
                if record["schema"] > SCHEMA:
                    newer += 1
                else:
                    yield record, end
            if newer:
                problems.append(
                    f"{path.name}: {counted(newer, 'line')} of a newer kvbench left out; this one reads schema 1 "
                    f"to {SCHEMA}, update it"
                )
        except FileNotFoundError:
            # compacted since it was listed
            return
        except (OSError, EOFError, zlib.error) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"run: cannot read {self.run_dir}: {why}") from None

    def pack(self, folder: Path) -> Path:
        """Write all finished cells as one compressed file into another folder, from where they can be read.

        The same cells give the same file: it holds no time and no name.

        Args:
            folder: for the file, `cells-packed.jsonl.gz`.
        """
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in self.scan()[0]]
        path = folder / "cells-packed.jsonl.gz"
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as file:
            file.write("".join(f"{line}\n" for line in sorted(lines)).encode())
        return write(path, packed.getvalue())

    def write_config(self, text: str) -> None:
        """Writes the resolved configuration (YAML) atomically."""
        self._replace(self.config_path, text)

    def write_plan(
        self, cells: Iterable[tuple[str, str, str]], request: Mapping[str, Any], command: str = ""
    ) -> None:
        """Writes the plan of a command atomically, in place of the one that an equal command left.

        Args:
            cells: (task, method, cell id) of every cell.
            request: what the command asks for; equal requests share a file.
            command: the user's overrides, as text.
        """
        path = self.run_dir / self.plan_name(request)
        self._replace(path, json.dumps(plans.content(command, cells), allow_nan=False))

    @staticmethod
    def plan_name(request: Mapping[str, Any]) -> str:
        """The name of the file with the plan of a request."""
        return f"plan-{digest(request)}.json"

    def planned(self) -> plans.Planned:
        """All that was asked of the folder.

        Raises:
            UserError: a plan cannot be read.
        """
        return plans.read(self.run_dir)

    def _replace(self, path: Path, text: str) -> None:
        with self._writing():
            write(path, text, "run_dir")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Creates the folder; turns a full disk and the like into a UserError."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise UserError(f"run_dir: cannot write in {self.run_dir}: {error.strerror}") from None

    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty if there is none.

        Raises:
            UserError: config.yaml is not YAML or cannot be read.
        """
        try:
            found = read_yaml(file_text(self.config_path)) or {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"run: cannot read {self.config_path}: {why}") from None
        if not isinstance(found, dict):
            raise UserError(f"run: {self.config_path} is not the configuration of a run")
        return found

    def _warned_scan(self) -> list[Record]:
        records, problems = self.scan()
        for problem in problems:
            warnings.warn(problem, stacklevel=3)
        return records


def digest(payload: Mapping[str, Any]) -> str:
    """Hash of a payload, 16 hex digits: the id of a cell."""
    text = json.dumps(payload, sort_keys=True, default=str, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_lines(path: Path, problems: list[str], start: int) -> Iterator[tuple[Record, int]]:
    packed = path.suffix == ".gz"
    if packed and start:
        return
    with gzip.open(path) if packed else open(path, "rb") as file:
        file.seek(start)
        for number, line in enumerate(file, start=1):
            record = _parse(line)
            whole = line.endswith(b"\n")
            start += len(line) if whole else 0
            if record is not None:
                yield record, start
            elif not whole:
                problems.append(f"{path.name}: torn last line {number} ignored, its cell will run again")
            elif line.strip():
                problems.append(f"{path.name}: corrupted line {number} ignored, its cell will run again")


def _parse(line: bytes) -> Record | None:
    try:
        record = orjson.loads(line)
    except ValueError:
        # which refuses more, as half of a surrogate pair
        try:
            record = read_json(line)
        except ValueError:
            return None
    if not isinstance(record, dict) or not isinstance(record.get("cell"), str):
        return None
    version = record.setdefault("schema", 1)
    return record if type(version) is int and version > 0 else None
