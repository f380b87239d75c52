"""Files of a folder and its sub-folders, plain or gzipped, and their lines."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvbench.claude.traces.problems import Problems
from kvbench.config.errors import UserError
from kvbench.config.numbers import read_json
from kvbench.config.text import one_line

# bytes of a line, and of a file that is read whole, unpacked
LONGEST_LINE, LARGEST = 256 * 2**20, 2**30
# what reading a gzipped file raises if it is cut off or damaged
UNREADABLE = (OSError, EOFError, zlib.error)


def files_of(path: str | Path, suffixes: Sequence[str]) -> list[Path]:
    """A file, or the files below a folder that end in one of the suffixes, also with .gz behind it.

    Args:
        path: the file or folder.
        suffixes: as ".jsonl".

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"trace={path}: no such file or folder")
    if not path.is_dir():
        return [path]
    found = sorted(
        file for file in path.rglob("*") if _plain(file).endswith(tuple(suffixes)) and file.is_file()
    )
    if not found:
        raise UserError(f"trace={path}: no files {', '.join(f'*{suffix}' for suffix in suffixes)} below it")
    return found


def place_of(file: Path, root: Path) -> str:
    """Name of a file in messages: its path below the folder that was given."""
    return file.name if file == root else str(file.relative_to(root))


def lines_of(file: Path, place: str, problems: Problems) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not empty; of a damaged file those before the damage, which is a problem."""
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), 1):
                if len(line) > LONGEST_LINE:
                    raise OSError(f"a line of more than {LONGEST_LINE:,} bytes")
                if line.strip():
                    yield number, line
    except UNREADABLE as error:
        problems.corrected(place, f"it cannot be read beyond line {number} ({type(error).__name__}: {error})")


def rows_of(file: Path, place: str, problems: Problems) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """The JSON objects of a file of lines, each with its number and its place; other lines are defects."""
    for number, line in lines_of(file, place, problems):
        where = f"{place}, line {number}"
        try:
            row = read_json(line)
        except (ValueError, RecursionError) as error:
            problems.skip(where, one_line(error))
            continue
        if isinstance(row, Mapping):
            yield number, where, row
        else:
            problems.skip(where, "not a JSON object")


def content_of(file: Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError, EOFError, zlib.error: it cannot be read.
    """
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as opened:
        content = opened.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(f"more than {LARGEST:,} bytes")
    return content


def objects_of(file: Path, most: int = 1000) -> Iterator[Any]:
    """The JSON of a file's first lines, then that of the whole file: what tells its format.

    Args:
        file: the file.
        most: number of lines.
    """
    for _, line in itertools.islice(lines_of(file, file.name, Problems()), most):
        try:
            yield read_json(line)
        except (ValueError, RecursionError):
            continue
    try:
        yield read_json(content_of(file))
    except (*UNREADABLE, ValueError, RecursionError):
        return


def _plain(file: Path) -> str:
    return file.name.removesuffix(".gz")
