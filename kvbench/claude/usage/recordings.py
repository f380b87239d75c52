"""Recordings of kvbench's own recorder: their usage alone, without the blocks of the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kvbench.claude.files import place_of, rows_of
from kvbench.claude.traces.checks import text_of
from kvbench.claude.traces.problems import Problems
from kvbench.claude.traces.recorded import tools_of, usage_of
from kvbench.claude.usage.call import Call
from kvbench.claude.usage.documents import read_rows
from kvbench.config.errors import UserError

SOURCE = "recordings of kvbench (trace format 1)"
NOTES: tuple[str, ...] = ()


def looks_so(row: object) -> bool:
    """Whether a line is one of a recording."""
    return isinstance(row, Mapping) and "blocks" in row


def calls(files: Sequence[Path], root: Path, problems: Problems) -> Iterator[Call]:
    """The answered calls of all files that have usage."""
    for file in files:
        place = place_of(file, root)
        prefix = "" if file == root else f"{place}: "
        rows = ((where, row) for _, where, row in rows_of(file, place, problems))
        yield from read_rows(rows, problems, partial(_call, prefix, set()))


def _call(prefix: str, items: set[str], row: Mapping[str, Any], where: str) -> Call | None:
    """The call of a line; an item of a batch whose results were fetched again is billed once."""
    if row.get("status", 200) >= 400:
        return None
    if isinstance(row.get("batch"), str):
        if row["id"] in items:
            raise UserError(f"the item {row['id']} stands on an earlier line")
        items.add(row["id"])
    usage = usage_of(row.get("usage"))
    if usage is None:
        raise UserError("it has no usage")
    return Call(
        id=f"{prefix}{row['id']}",
        t=float(row["t"]),
        model=str(row["model"]),
        usage=usage,
        session=f"{prefix}{text_of(row, 'session')}",
        batch=bool(row.get("batch")),
        geo=text_of(row, "geo"),
        speed=text_of(row, "speed"),
        server_tools=tools_of(row.get("server_tools")),
        place=where,
    )
