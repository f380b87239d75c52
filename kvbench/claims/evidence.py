"""Results of runs to check claims against: the committed ones, and those that the user names."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kvbench import report

# beside conf/, in a checkout and in an installed package
RESULTS = Path(str(importlib.resources.files("kvbench.conf"))).parent / "results"


@dataclass(frozen=True)
class Runs:
    """Summaries of runs by name.

    Attributes:
        frames: per run one row per method, budget, task and length, with the columns of summary.csv.
        metrics: per run of the user's its further metrics and averages, with the columns of metrics.csv.
    """

    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    metrics: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def rows(self, run: str, where: Mapping[str, object]) -> pd.DataFrame | None:
        """The rows of a run that match every column value of `where`, None if there are none."""
        frame = self.frames.get(run)
        if frame is None:
            return None
        for column, value in where.items():
            frame = frame[frame[column].astype(str) == str(value)]
        return None if frame.empty else frame


def load(results: Path = RESULTS, runs: Sequence[str] = ()) -> Runs:
    """Loads the committed results and the user's runs.

    Args:
        results: folder with `NAME/summary.csv` per committed run.
        runs: folders of further runs, or names in results/runs; they replace committed runs of the same experiment.

    Raises:
        UserError: a run that does not exist.
    """
    files = sorted(results.glob("*/summary.csv"))
    # as text: a budget of 256 must not become 256.0 where another row has none
    frames = {file.parent.name: pd.read_csv(file, dtype={"budget_requested": str}) for file in files}
    metrics: dict[str, pd.DataFrame] = {}
    for name in runs:
        run = report.load(name)
        known = run.config.get("name", run.name)
        frames[known], metrics[known] = run.summary(), run.metrics()
    return Runs(frames, metrics)
