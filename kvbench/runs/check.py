"""Whether the rows of a folder can be trusted: their schema, rows that contradict each other, unreadable lines."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.files import write, writing
from kvbench.config.text import counted
from kvbench.runs.claims import Claims
from kvbench.runs.store import Store

#: what equal cells have in common to the last digit, and what they may differ in by rounding
EXACT = ("output_ids", "score", "stop", "kept_tokens")
CLOSE = (
    "kl_to_dense", "agree_top1", "bytes_resident", "bytes_resident_end", "bytes_resident_bf16", "bytes_read_per_step",
    "bytes_read_per_step_bf16",
)  # fmt: skip
#: allowed difference of those, absolute, or of a number above 1 relative
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        rows: lines of finished cells, by schema version.
        files: files that they are in.
        cells: different cells among them.
        conflicts: a sentence for each row that contradicts the first one of its cell.
        problems: a sentence for each unreadable line.
    """

    rows: Mapping[int, int]
    files: int
    cells: int
    conflicts: list[str]
    problems: list[str]

    def text(self) -> str:
        """As lines."""
        total = sum(self.rows.values())
        versions = ", ".join(f"schema {version}: {n:,}" for version, n in sorted(self.rows.items()))
        lines = [
            f"{counted(total, 'row')} in {counted(self.files, 'file')} ({versions or 'none'}), "
            f"{counted(self.cells, 'cell')}, {counted(total - self.cells, 'duplicate')}, "
            f"{counted(len(self.conflicts), 'conflict')}"
        ]
        return "\n".join([*lines, *(f"conflict: {line}" for line in self.conflicts), *self.problems])


def check(store: Store) -> Checked:
    """Read all rows, in two passes that hold no rows but those of duplicates.

    Raises:
        UserError: the folder cannot be read.
    """
    problems: list[str] = []
    versions: Counter[int] = Counter()
    seen: set[str] = set()
    twice: set[str] = set()
    files = store.files("cells")
    for path in files:
        for row, _ in store.lines_of(path, problems):
            versions[row["schema"]] += 1
            (twice if row["cell"] in seen else seen).add(row["cell"])
    return Checked(versions, len(files), len(seen), list(_conflicts(store, twice)), problems)


def _conflicts(store: Store, twice: set[str]) -> Iterator[str]:
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in store.files("cells") if twice else ():
        for row, _ in store.lines_of(path, []):
            if (cell := row["cell"]) not in twice:
                continue
            own = {name: row.get(name) for name in (*EXACT, *CLOSE)}
            if cell not in first:
                first[cell] = path.name, own
                continue
            name, kept = first[cell]
            if other := [key for key in own if _differ(key, kept[key], own[key])]:
                yield f"{cell}: {', '.join(other)} in {path.name} differ from {name}, whose row counts"


def _differ(name: str, first: Any, other: Any) -> bool:
    if name in CLOSE and all(isinstance(value, int | float) for value in (first, other)):
        return abs(first - other) > TOLERANCE * max(1.0, abs(first))
    return first != other


def compact(store: Store) -> str:
    """Put the rows of all workers into one file, each cell once; says what was done.

    Killed at any moment it loses nothing: the old files go when the new one is on disk.

    Raises:
        UserError: a worker is at work on the folder, rows contradict each other, or it cannot be written.
    """
    if claimed := Claims(store.run_dir, store.worker, 1.0).listed():
        raise UserError(
            f"run: {counted(len(claimed), 'prompt')} claimed in {store.run_dir}; wait until no worker is at work, and "
            "delete its claims/ if none is"
        )
    found = check(store)
    if found.conflicts:
        raise UserError(f"run: rows of {store.run_dir} contradict each other; see kvbench status --check")
    old = [path for path in store.files("cells") if path.suffix == ".jsonl"]
    sizes = {path: path.stat().st_size for path in old}
    rows = {row["cell"]: row for path in reversed(old) for row in _backwards(store, path)}
    text = "".join(
        json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in reversed(rows.values())
    )
    path = write(store.run_dir / f"cells-compacted-{store.worker}.jsonl", text, "run_dir")
    for one in old:
        # a worker that came meanwhile keeps its file
        if one.stat().st_size == sizes[one]:
            with writing(one, "run_dir"):
                os.unlink(one)
    return f"{counted(len(rows), 'cell')} of {counted(len(old), 'file')} in {path.name}"


def _backwards(store: Store, path: Any) -> list[dict[str, Any]]:
    return [row for row, _ in store.lines_of(path, [])][::-1]
