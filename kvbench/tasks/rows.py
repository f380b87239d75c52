"""Rows of data sets: from a file, a saved folder, or the Hugging Face hub when allowed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.text import one_line

INSTALL = "pip install 'kvbench[{}]'"
_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
#: a type of a field in words, and whether a value has it
Kind = tuple[str, Callable[[Any], bool]]

TEXT: Kind = ("text", lambda value: isinstance(value, str))
TEXTS: Kind = (
    "a list of texts, at least one",
    lambda value: isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value),
)
WHOLE: Kind = ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))


@dataclass(frozen=True)
class Rows:
    """Rows of a data set.

    Attributes:
        rows: one mapping per row.
        digest: SHA-256 of their content, whatever file they are in.
        source: the file's name, or name and commit of a data set of the hub.
        place: names the source, for messages.
    """

    rows: Sequence[Mapping[str, Any]]
    digest: str
    source: str
    place: str

    def checked(self, fields: Mapping[str, Kind], more: Callable[[Mapping[str, Any]], str | None]) -> Rows:
        """The rows, if each has the fields.

        Args:
            fields: type by name.
            more: the defect of a row that has them, or None.

        Raises:
            UserError: names the first row and field that are wrong.
        """
        for number, row in enumerate(self.rows, start=1):
            for name, (kind, fits) in fields.items():
                if name not in row:
                    raise self.fault(number, f"there is no field {name}, but {', '.join(map(str, row))}")
                if not fits(row[name]):
                    given = " ".join(repr(row[name]).split())[:60]
                    raise self.fault(number, f"{name} must be {kind}, not {given}")
            if fault := more(row):
                raise self.fault(number, fault)
        return self

    def fault(self, number: int, text: str) -> UserError:
        """The error for a row, counted from 1."""
        return UserError(f"data: {self.place} row {number}: {text}")


def required(package: str, use: str, extra: str = "tasks") -> None:
    """Refuse where a package of an extra is missing.

    Args:
        package: its import name.
        use: what needs it, as `LongBench's ROUGE`.
        extra: the extra that holds it.

    Raises:
        UserError: it is not installed.
    """
    if find_spec(package) is None:
        raise UserError(f"{use} needs the package {package.replace('_', '-')}: {INSTALL.format(extra)}")


def read(path: str, name: str = "") -> Rows:
    """The rows of a file, or of a folder.

    Args:
        path: a .jsonl, .json (a list), .parquet or .csv file; a folder that `Dataset.save_to_disk` wrote; or a folder
            that holds one of these under the name of the data set.
        name: the data set within a folder.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        found = _located(Path(path).expanduser(), name)
        if found.is_dir():
            stats = [(file, file.stat()) for file in sorted(found.glob("*.arrow"))]
            return _saved(found, tuple((str(file), stat.st_mtime_ns, stat.st_size) for file, stat in stats))
        stat = found.stat()
        return _file(found, stat.st_mtime_ns, stat.st_size)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, RecursionError, csv.Error) as error:
        raise UserError(f"data: {path} cannot be read ({one_line(error)})") from None


def _located(path: Path, name: str) -> Path:
    if path.is_file() or _is_saved(path):
        return path
    if not path.is_dir():
        raise UserError(f"data: there is no file or folder {path}")
    candidates = [path / f"{name}{suffix}" for suffix in _SUFFIXES] if name else []
    for found in candidates:
        if found.is_file():
            return found
    if name and _is_saved(path / name):
        return path / name
    wanted = f"{name}{'|'.join(_SUFFIXES)} or a saved folder {name}" if name else "a saved data set"
    raise UserError(f"data: the folder {path} has no {wanted}")


def _is_saved(path: Path) -> bool:
    return (path / "dataset_info.json").is_file() and any(path.glob("*.arrow"))


@lru_cache(maxsize=40)
def _file(path: Path, mtime_ns: int, size: int) -> Rows:
    data = path.read_bytes()
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        required("pyarrow", f"data: {path}")
        from pyarrow import parquet  # type: ignore[import-not-found]

        rows = parquet.read_table(path).to_pylist()
    elif suffix == ".csv":
        csv.field_size_limit(sys.maxsize)
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    elif suffix in (".jsonl", ".json"):
        rows = _json_rows(data.decode("utf-8-sig"), suffix == ".jsonl", str(path))
    else:
        raise UserError(f"data: {path} is not a {', '.join(_SUFFIXES)} file, and no folder")
    return _rows(rows, path.name, str(path))


def _rows(rows: Any, source: str, place: str) -> Rows:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"data: {place} is not a list of objects")
    if not rows:
        raise UserError(f"data: {place} has no rows")
    digest = hashlib.sha256()
    for row in rows:
        text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return Rows(tuple(rows), digest.hexdigest(), source, place)


def _json_rows(text: str, lines: bool, place: str) -> Any:
    if not lines:
        return json.loads(text)
    rows = []
    # not splitlines: texts may hold other line separators
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"data: {place} line {number} is not JSON ({error})") from None
    return rows


@lru_cache(maxsize=40)
def _saved(folder: Path, files: tuple[tuple[str, int, int], ...]) -> Rows:
    required("datasets", f"data: the saved data set {folder}")
    from datasets import Dataset, load_from_disk  # type: ignore[import-not-found]

    loaded = load_from_disk(str(folder))
    assert isinstance(loaded, Dataset)
    return _rows(loaded.to_list(), folder.name, str(folder))


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub.

    Attributes:
        name: `owner/name`.
        config: its configuration, None for the only one.
        split: the split.
        archive: a zip file of it that holds the rows, where the data set is a script.
        member: path within the archive.
    """

    name: str
    config: str | None = None
    split: str = "test"
    archive: str | None = None
    member: str = ""


@lru_cache(maxsize=40)
def download(hub: Hub) -> Rows:
    """The rows of a data set of the hub, from its cache on this machine where `HF_HUB_OFFLINE=1`.

    Raises:
        UserError: it cannot be had.
    """
    required("datasets", f"download: {hub.name}")
    try:
        commit = _commit(hub)
        place = f"{hub.name}{f' {hub.config}' if hub.config else ''}{f' at {commit[:12]}' if commit else ''}"
        if hub.archive:
            from huggingface_hub import hf_hub_download

            file = hf_hub_download(hub.name, hub.archive, repo_type="dataset", revision=commit)
            with zipfile.ZipFile(file) as archive:
                text = archive.read(hub.member).decode("utf-8-sig")
            rows = _json_rows(text, True, f"{place} {hub.member}")
        else:
            from datasets import load_dataset  # type: ignore[import-not-found]

            rows = load_dataset(hub.name, hub.config, split=hub.split, revision=commit).to_list()
    except UserError:
        raise
    # the hub's client raises whatever its transport does
    except Exception as error:
        raise UserError(
            f"download: {hub.name} cannot be had ({type(error).__name__}: {one_line(error)[:200]})"
        ) from None
    return _rows(rows, f"{hub.name}@{commit or 'cached'}", place)


def _commit(hub: Hub) -> str | None:
    """The commit that the data set's name stands for now; None offline, where the cache decides."""
    if os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "yes", "on"):
        return None
    from huggingface_hub import HfApi

    return HfApi().dataset_info(hub.name).sha
