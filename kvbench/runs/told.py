"""Failed cells as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: failures that a message lists
LISTED = 20
#: characters of a reason in a message; the record has all of them
LONGEST = 300


def told(record: Mapping[str, Any]) -> str:
    """One line: `ruler_vt 1024 #3, snapkv 64: not finite: ...`."""
    length = f" {record['length']}" if record["length"] else ""
    method = " ".join([record["method"], record["budget_requested"]]).strip()
    batch = f" batch {record['batch']}" if record.get("batch") else ""
    what = f"{record['failure'].replace('_', ' ')}: {record['reason']}"
    if len(what) > LONGEST:
        what = f"{what[:LONGEST]} ..."
    return f"{record['task']}{length} #{record['sample']}, {method}{batch}: {what}"


def listed(records: Sequence[Mapping[str, Any]], folder: str | Path) -> list[str]:
    """A line for each failure, up to a number."""
    lines = [told(record) for record in records[:LISTED]]
    if len(records) > LISTED:
        lines.append(f"and {len(records) - LISTED:,} more, see failures-*.jsonl in {folder}")
    return lines
