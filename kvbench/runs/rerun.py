"""The command that runs one cell again, on its own."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from kvbench.config.compose import RUNS, compose
from kvbench.runs.config import RunConfig

# settled by the cell; everything else that the user gave is repeated as it was
_SETTLED = set("experiment task method variants ablate budget protocol seeds limit run_dir".split())


class Rerun:
    """Commands that rerun the cells of a run.

    Args:
        cfg: the run's configuration.
    """

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg
        self._given = [text for text in cfg.overrides if _key(text) not in _SETTLED]
        self._plain_tasks: dict[str, Mapping[str, Any]] = {}

    def command(self, cell: Mapping[str, Any]) -> str:
        """The `kvbench run` command line for one cell.

        The samples before the cell's are run too: samples are numbered, and the cell's is the last of them.

        Args:
            cell: its record, or as much of it as cell, task, length, sample, seed, protocol, method and
                budget_requested.
        """
        task, budget = cell["task"], cell["budget_requested"]
        wanted = self.cfg.task[task] | {"length": [cell["length"]]}
        plain = self._plain(task)
        tokens, ratio = ("", budget.removesuffix("x")) if budget.endswith("x") else (budget, "")
        words = [
            f"experiment={self.cfg.name}",
            *self._given,
            f"task=[{task}]",
            *(f"task.{task}.{key}={text(value)}" for key, value in wanted.items() if plain.get(key) != value),
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
        # dense is beside every cell, chosen or not
        entry = self.cfg.method.get(label, {"method": "dense"})
        return ["method=[]", f"variants={text({label: entry})}", "ablate={}"]

    def _plain(self, task: str) -> Mapping[str, Any]:
        """The task as the experiment has it, without what the user said of it."""
        if task not in self._plain_tasks:
            words = [f"experiment={self.cfg.name}", *self._given, f"task=[{task}]", "method=[]"]
            self._plain_tasks[task] = compose(words, self.cfg.config_dirs).data["task"][task]
        return self._plain_tasks[task]


def text(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_escaped(str(name))}:{text(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(text(item) for item in value) + "]"
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    return json.dumps(value)


def _key(override: str) -> str:
    return re.split(r"[.=@]", override.lstrip("+~"), maxsplit=1)[0]


def _escaped(name: str) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", name)
