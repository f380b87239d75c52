"""Recordings of kvbench's own recorder: their usage alone, without the blocks of the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvbench.claude.files import lines_of, place_of
from kvbench.claude.traces.checks import MALFORMED
from kvbench.claude.traces.problems import Problems
from kvbench.claude.traces.recorded import tools_of, usage_of
from kvbench.claude.usage.call import Call
from kvbench.config.errors import UserError
from kvbench.config.numbers import read_json

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
        for number, text in lines_of(file, place, problems):
            where = f"{place}, line {number}"
            try:
                call = _call(read_json(text), prefix, where)
            except UserError as error:
                problems.skip(where, str(error))
                continue
            except MALFORMED as error:
                problems.skip(where, f"{type(error).__name__}: {error}")
                continue
            if call is not None:
                yield call


def _call(row: Mapping[str, Any], prefix: str, where: str) -> Call | None:
    if row.get("status", 200) >= 400:
        return None
    usage = usage_of(row.get("usage"))
    if usage is None:
        raise UserError("it has no usage")
    return Call(
        id=f"{prefix}{row['id']}",
        t=float(row["t"]),
        model=str(row["model"]),
        usage=usage,
        session=f"{prefix}{row.get('session', '')}",
        batch=bool(row.get("batch")),
        geo=row.get("geo", ""),
        speed=row.get("speed", ""),
        server_tools=tools_of(row.get("server_tools")),
        place=where,
    )
