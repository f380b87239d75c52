"""What was asked of a run's folder: every command leaves a plan there, and all of them together count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.numbers import read_json

#: version of the form of a plan's file
PLAN = 1


@dataclass(frozen=True)
class Plan:
    """What one command asked for.

    Attributes:
        file: its name in the run's folder.
        command: the user's overrides, as text; "" where they are not known.
        cells: ids of its cells.
    """

    file: str
    command: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """All that was asked of a folder.

    Attributes:
        plans: the plans, by the names of their files.
        cells: task and method of every planned cell, by its id; ("", "") where a plan of earlier code has no more.
        totals: cells per task and method, of plans of earlier code; used where such a plan is the only one.
    """

    plans: tuple[Plan, ...] = ()
    cells: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    totals: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def count(self, known: Mapping[str, tuple[str, str]]) -> Counter[tuple[str, str]]:
        """Cells per task and method.

        Args:
            known: task and method of finished or failed cells, for plans that do not have them.
        """
        if len(self.plans) == 1 and self.totals:
            return Counter(self.totals)
        return Counter(
            what if what != ("", "") else known.get(cell, what) for cell, what in self.cells.items()
        )

    def unfinished(self, settled: set[str]) -> Iterator[tuple[Plan, int]]:
        """Plans with cells that are not settled, and how many.

        Args:
            settled: ids of cells that are done or failed.
        """
        for plan in self.plans:
            if missing := sum(cell not in settled for cell in plan.cells):
                yield plan, missing


def content(command: str, cells: Iterable[tuple[str, str, str]]) -> dict[str, Any]:
    """The content of a plan's file.

    Args:
        command: the user's overrides, as text.
        cells: (task, method, cell id) of every cell.
    """
    tasks: dict[str, dict[str, list[str]]] = {}
    for task, method, cell in cells:
        tasks.setdefault(task, {}).setdefault(method, []).append(cell)
    return {"plan": PLAN, "command": command, "cells": tasks}


def read(folder: Path) -> Planned:
    """All plans of a folder, united.

    Raises:
        UserError: a plan cannot be read.
    """
    plans, cells, totals = [], {}, {}
    # plan.json is earlier code's, which kept the last one only
    for path in sorted(folder.glob("plan*.json")):
        try:
            plan, found, total = _parsed(path.name, read_json(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"run: cannot read {path}: {type(error).__name__}; delete it, and the same command plans anew"
            ) from None
        plans.append(plan)
        totals |= total
        cells |= {cell: what for cell, what in found.items() if what != ("", "") or cell not in cells}
    return Planned(tuple(plans), cells, totals)


def _parsed(
    name: str, data: Mapping[str, Any]
) -> tuple[Plan, dict[str, tuple[str, str]], dict[tuple[str, str], int]]:
    if "plan" in data:
        cells = {
            cell: (task, method)
            for task, methods in data["cells"].items()
            for method, ids in methods.items()
            for cell in ids
        }
        return Plan(name, str(data["command"]), tuple(cells)), cells, {}
    totals = {(entry["task"], entry["method"]): entry["cells"] for entry in data.get("totals", ())}
    ids = tuple(data["cells"])
    return Plan(name, "", ids), dict.fromkeys(ids, ("", "")), totals
