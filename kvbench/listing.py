"""What `kvbench ls` prints: a table on a terminal, tab-separated lines anywhere else."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from kvbench.compose import file, options


def show(what: str, config_dirs: Sequence[str], console: Console | None = None) -> None:
    """Print the methods, tasks, models or experiments that there are."""
    console = console or Console(highlight=False)
    header, rows = _methods() if what == "methods" else _group(what.removesuffix("s"), config_dirs)
    if not console.is_terminal:
        for row in [header, *rows]:
            console.file.write("\t".join(row) + "\n")
        return
    table = Table(*header, show_lines=what == "methods")
    for row in rows:
        # formulas hold brackets and the like
        table.add_row(*[cell.replace("[", "\\[") for cell in row])
    console.print(table)


def _methods() -> tuple[list[str], list[list[str]]]:
    from kvbench.methods import registry

    header = ["name", "family", "description", "budget", "bytes per layer and KV head", "source"]
    rows = [
        [name, cls.family, _first_sentence(cls), cls.budget_meaning, cls.bytes_formula, cls.source]
        for name, cls in registry().items()
    ]
    return header, sorted(rows, key=lambda row: (row[1], row[0]))


def _group(group: str, config_dirs: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    names = options(group, config_dirs)
    rows = [[name, _comment(file(group, name, config_dirs).read_text(encoding="utf-8"))] for name in names]
    return ["name", "description"], rows


def _comment(text: str) -> str:
    """The first comment line of a configuration file that is neither Hydra's nor a command."""
    comments = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    return next((line for line in comments if not line.startswith(("@package", "kvbench run"))), "")


def _first_sentence(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]
