"""Files that are one JSON document or JSON lines, and their rows, each of which may be odd."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kvbench.claude.files import UNREADABLE, content_of, lines_of
from kvbench.claude.traces.checks import MALFORMED
from kvbench.claude.traces.problems import Problems
from kvbench.claude.usage.call import Call
from kvbench.config.errors import UserError


def documents(file: Path, place: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    """The file's only document with the file's place, or every line's with the line's.

    Args:
        file: the file.
        place: its place, for messages.
        problems: collects lines that are no JSON.
    """
    try:
        whole = json.loads(content_of(file))
    except (*UNREADABLE, ValueError, RecursionError):
        pass
    else:
        yield place, whole
        return
    for number, text in lines_of(file, place, problems):
        where = f"{place}, line {number}"
        try:
            yield where, json.loads(text)
        except (ValueError, RecursionError) as error:
            problems.skip(where, f"{type(error).__name__}: {error}")


def read_rows(
    rows: Iterable[tuple[str, Any]], problems: Problems, read: Callable[[Any, str], Call | None]
) -> Iterator[Call]:
    """The calls of rows; a row that cannot be read is a defect.

    Args:
        rows: with their places.
        problems: collects defects.
        read: the call of a row and its place, None if it is none.
    """
    for where, row in rows:
        try:
            call = read(row, where)
        except UserError as error:
            problems.skip(where, str(error))
            continue
        except MALFORMED as error:
            problems.skip(where, f"{type(error).__name__}: {error}")
            continue
        if call is not None:
            yield call
