"""The command that reruns a single cell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from kvbench.config.compose import RUNS, compose
from kvbench.config.errors import UserError
from kvbench.config.secrets import masked
from kvbench.config.typed import python_number
from kvbench.runs.config import HOW, RunConfig

# set from the cell; the user's other overrides are repeated unchanged
_FROM_CELL = set("experiment task method variants ablate budget protocol seeds limit".split()) | HOW


class Rerun:
    """Commands that rerun the cells of a run.

    Args:
        cfg: configuration of the run.
    """

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg
        self._overrides = [text for text in cfg.overrides if key_of_override(text) not in _FROM_CELL]
        self._task_defaults: dict[str, Mapping[str, Any]] = {}

    def command(self, cell: Mapping[str, Any]) -> str:
        """The `kvbench run` command line for one cell.

        It also runs the samples before the cell's, as `limit` selects the first ones.

        Args:
            cell: its record; needs cell, task, length, sample, seed, protocol, method and budget_requested.
        """
        task, budget = cell["task"], cell["budget_requested"]
        settings = self.cfg.task[task] | {"length": [cell["length"]]}
        defaults = self._defaults(task)
        tokens, ratio = ("", budget.removesuffix("x")) if budget.endswith("x") else (budget, "")
        words = [
            f"experiment={self.cfg.name}",
            *map(masked, self._overrides),
            f"task=[{task}]",
            *(
                f"task.{task}.{key}={text(value)}"
                for key, value in settings.items()
                if defaults.get(key) != value
            ),
            *self._method(cell["method"]),
            f"budget.tokens=[{tokens}]",
            f"budget.ratio=[{ratio}]",
            f"protocol=[{cell['protocol']}]",
            f"seeds=[{cell['seed']}]",
            f"limit={cell['sample'] + 1}",
            f"run_dir={RUNS / ('cell-' + cell['cell'])}",
        ]
        folders = [word for folder in self.cfg.config_dirs for word in ("--config-dir", folder)]
        return shlex.join(["kvbench", "run", *folders, *words])

    def _method(self, label: str) -> list[str]:
        # dense is in every group, selected or not
        entry = self.cfg.method.get(label, {"method": "dense"})
        return ["method=[]", f"variants={text({label: entry})}", "ablate={}"]

    def _defaults(self, task: str) -> Mapping[str, Any]:
        """Settings of a task in the experiment, without the user's overrides of it."""
        if task not in self._task_defaults:
            words = [f"experiment={self.cfg.name}", *self._overrides, f"task=[{task}]", "method=[]"]
            self._task_defaults[task] = compose(words, self.cfg.config_dirs).data["task"][task]
        return self._task_defaults[task]


def command(cfg: RunConfig) -> str:
    """The command line of a run, as the user gave it."""
    folders = [word for folder in cfg.config_dirs for word in ("--config-dir", folder)]
    return shlex.join(["kvbench", "run", *folders, *cfg.overrides])


def text(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_escaped(str(name))}:{text(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(text(item) for item in value) + "]"
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    value = python_number(value)
    if value is not None and not isinstance(value, bool | int | float):
        given = " ".join(repr(value).split())[:60]
        raise UserError(f"{given} is not a number, text, list or set of keys")
    return json.dumps(value)


def key_of_override(override: str) -> str:
    """The first part of an override's key, `task` of `task.length=512`."""
    return re.split(r"[.=@]", override.lstrip("+~"), maxsplit=1)[0]


def _escaped(name: str) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", name)
