"""Results of runs that a claim can be checked against: the committed ones, and those that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kvbench import report

RESULTS = Path("results")


@dataclass(frozen=True)
class Runs:
    """Summaries of runs by name.

    Attributes:
        frames: one row per method, budget, task and length, with the columns of summary.csv.
    """

    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def rows(self, run: str, where: Mapping[str, object]) -> pd.DataFrame | None:
        """The rows of a run in which every column of `where` has the value, None where there are none."""
        frame = self.frames.get(run)
        if frame is None:
            return None
        for column, value in where.items():
            frame = frame[frame[column].astype(str) == str(value)]
        return None if frame.empty else frame


def load(results: Path = RESULTS, runs: Sequence[str] = ()) -> Runs:
    """Read what there is.

    Args:
        results: folder with a folder `NAME/summary.csv` per committed run.
        runs: folders of further runs, or their names in results/runs; they replace committed ones of their experiment.

    Raises:
        UserError: a run that does not exist.
    """
    files = sorted(results.glob("*/summary.csv"))
    # as text: a budget of 256 must not become 256.0 where another row has none
    frames = {file.parent.name: pd.read_csv(file, dtype={"budget_requested": str}) for file in files}
    for name in runs:
        run = report.load(name)
        frames[run.config.get("name", run.name)] = run.summary()
    return Runs(frames)
