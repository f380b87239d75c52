"""The page that an experiment on several servers leaves: what was measured on what, tables, refusals, how to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from kvbench.report.format import Table
from kvbench.runs.store import Record
from kvbench.vllm.about import about
from kvbench.vllm.campaign import of_kind


def write(
    folder: Path, title: str, rows: Sequence[Record], parts: Iterable[Table | str], guide: Sequence[str]
) -> Path:
    """Writes table.md.

    Args:
        folder: the run's.
        title: of the page.
        rows: all of a `Campaign`, with those of servers that did not start.
        parts: tables, and lines between them.
        guide: how to read them, a line each.

    Returns:
        The file.
    """
    measured = [row for row in rows if row["row"] != "setup"]
    notes = dict.fromkeys(row["note"] for row in measured if row["note"])
    refused = [f"- {row['setup']}: {row['refused']}" for row in rows if "refused" in row]
    lines = [f"# {title}", ""]
    lines += [*(f"- **{note}**" for note in notes), ""] if notes else []
    lines += about(of_kind(rows, "setup"), measured)
    lines += [part if isinstance(part, str) else part.markdown() for part in parts]
    lines += ["### Refused by vLLM", "", *refused, ""] if refused else []
    lines += ["## How to read", "", *(f"- {line}" for line in guide), ""]
    path = folder / "table.md"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
