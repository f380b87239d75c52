"""kvbench from Python and notebooks: the functions of `import kvbench`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvbench import report
from kvbench.config.compose import compose, run_dir
from kvbench.config.errors import CellsFailed, UserError
from kvbench.experiments import run as run_experiment
from kvbench.report import Run
from kvbench.runs.progress import Progress
from kvbench.runs.rerun import text


def run(
    experiment: str,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    config_dirs: Sequence[str | Path] = (),
    **settings: Any,
) -> Run:
    """Run an experiment, or the part of it that is not done, and return its results; warns of cells that failed.

    Args:
        experiment: name of the experiment, as on the command line.
        overrides: `key=value` strings as on the command line, or a mapping of them.
        config_dirs: folders with your own configuration.
        **settings: more overrides, for keys without a dot.

    Raises:
        kvbench.config.errors.UserError: an override or name that is not allowed.

    Examples:
        `kvbench.run("quickstart", method=["snapkv", "rocketkv"], limit=2).summary()`
        `kvbench.run("quickstart", {"budget.tokens": [128]})`
    """
    if not isinstance(experiment, str):
        raise UserError(f"experiment: {experiment!r} is not a name, as 'quickstart'")
    if isinstance(overrides, str):
        raise UserError(f"overrides: {overrides!r} is one string; give a list of them, or a mapping")
    if isinstance(overrides, Mapping):
        overrides = [_override(key, value) for key, value in overrides.items()]
    overrides = [*overrides, *(_override(key, value) for key, value in settings.items())]
    composed = compose([f"experiment={experiment}", *overrides], [str(folder) for folder in config_dirs])
    try:
        run_experiment(composed, Progress)
    except CellsFailed as failed:
        warnings.warn(f"cells failed:\n{failed}", stacklevel=2)
    return load(run_dir(composed))


def _override(key: str, value: Any) -> str:
    try:
        return f"{key}={text(value)}"
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def load(run: str | Path) -> Run:
    """The results of a run: `.cells()`, `.summary()`, `.table()` and `.plot(kind)`.

    Args:
        run: folder of the run, or its name under `results/runs/`.
    """
    return report.load(run)
