"""What the experiments share: the configuration from the composed keys, and the text they return."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from kvbench.config.compose import Composed, experiment_keys
from kvbench.config.errors import CellsFailed
from kvbench.config.typed import build
from kvbench.runs.config import chosen, expanded
from kvbench.runs.store import Record
from kvbench.runs.told import listed

T = TypeVar("T")


def configuration(composed: Composed, cls: type[T]) -> T:
    """Builds an experiment's configuration.

    Fields named `method` and `budget` get the entries with variants and ablations expanded, `task` the entries of
    the selected tasks, and `config_dirs` the user's folders.

    Args:
        composed: the composed experiment.
        cls: its dataclass.

    Raises:
        UserError: a key or value that is not allowed.
    """
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = experiment_keys(composed, cls)
    if "method" in names:
        values["method"], values["budget"] = expanded(composed.data, composed.config_dirs)
    if "task" in names:
        values["task"] = chosen("task", composed.data, composed.config_dirs)
    if "config_dirs" in names:
        values["config_dirs"] = list(composed.config_dirs)
    return build(cls, values)


def result(table: Path) -> str:
    """Write the page of a run from its table and other files; returns the table's text and the path of the page."""
    # pandas and matplotlib load only once the configuration is valid
    from kvbench.report.folder import write_page

    return f"{table.read_text(encoding='utf-8')}\nreport: {write_page(table.parent)}"


def with_failures(text: str, failures: Sequence[Record], folder: str | Path) -> str:
    """The text that an experiment returns.

    Args:
        text: what it has to say.
        failures: records of failed cells.
        folder: the run's.

    Raises:
        CellsFailed: there are any.
    """
    if failures:
        raise CellsFailed(text, listed(failures, folder))
    return text
