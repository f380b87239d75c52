"""kvbench from Python and notebooks: the functions of `import kvbench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvbench import report
from kvbench.config.compose import compose, run_dir
from kvbench.experiments import run as run_experiment
from kvbench.report import Run
from kvbench.runs.progress import Progress
from kvbench.runs.rerun import text


def run(
    experiment: str, overrides: Sequence[str] | Mapping[str, Any] = (), config_dirs: Sequence[str | Path] = ()
) -> Run:
    """Run an experiment, or the part of it that is not done, and return its results.

    Args:
        experiment: name of the experiment, as on the command line.
        overrides: `key=value` strings as on the command line, or a mapping of them.
        config_dirs: folders with your own configuration.

    Raises:
        kvbench.config.errors.UserError: an override or name that is not allowed.

    Example:
        `kvbench.run("quickstart", ["method=[snapkv,rocketkv]", "limit=2"]).summary()`
    """
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={text(value)}" for key, value in overrides.items()]
    composed = compose([f"experiment={experiment}", *overrides], [str(folder) for folder in config_dirs])
    run_experiment(composed, Progress)
    return load(run_dir(composed))


def load(run: str | Path) -> Run:
    """The results of a run: `.cells()`, `.summary()`, `.table()` and `.plot(kind)`.

    Args:
        run: folder of the run, or its name under `results/runs/`.
    """
    return report.load(run)
