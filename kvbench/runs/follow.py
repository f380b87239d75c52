"""Which cells of a folder are done, kept up to date while several workers write."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

from kvbench.runs.store import Store


class Follow:
    """Ids of finished and failed cells; each look reads only what was appended since the one before.

    Holds ids and no rows, so that memory is a hundred bytes per cell.

    Args:
        store: of the folder.

    Attributes:
        done: ids of the finished cells.
        failed: ids of cells with a failed attempt, of finished ones too.
        taken_back: how often rows that had been read were gone.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[Path, int] = {}
        self.taken_back = 0
        problems: list[str] = []
        self.done, self.failed = self._new(problems)
        for problem in problems:
            warnings.warn(problem, stacklevel=2)

    def look(self) -> tuple[set[str], set[str]]:
        """Ids of cells that any worker finished since the last look, and of those that failed.

        Where a file is shorter than what was read of it, a worker could not write all of a piece and took it back; all
        files are then read anew, and `done` is without the rows that are gone.
        """
        if any(_size(path) < read for path, read in self._read.items()):
            self._read.clear()
            self.taken_back += 1
            self.done, self.failed = set(), set()
        done, failed = self._new([])
        done -= self.done
        self.done |= done
        self.failed |= failed
        return done, failed

    def _new(self, problems: list[str]) -> tuple[set[str], set[str]]:
        found: tuple[set[str], set[str]] = (set(), set())
        for kind, ids in zip(("cells", "failures"), found, strict=True):
            for path in self._store.files(kind):
                start = self._read.get(path, 0)
                for record, end in self._store.lines_of(path, problems, start):
                    ids.add(record["cell"])
                    start = end
                self._read[path] = start
        return found


def _size(path: Path) -> float:
    """Bytes of a file; infinite for one that was compacted away, whose rows are in another."""
    try:
        return path.stat().st_size
    except OSError:
        return math.inf
