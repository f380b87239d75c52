"""Text about a run for the command line."""

from collections import Counter
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.text import counted
from kvbench.report.format import number
from kvbench.report.run import load

_PAIRING = ("model", "dtype", "task", "length", "protocol", "timing", "seed", "sample", "sample_hash")


def status(run: str | Path) -> str:
    """Progress of a run by task and method.

    Totals come from plan.json: `{"cells": [ids], "totals": [{"task", "method", "cells"}]}`; without it only
    finished cells are counted.
    """
    view = load(run)
    plan = view.plan
    if not view.records and not plan and view.files():
        return f"{view.path}: no cells of methods; results are in {', '.join(view.files())}"
    planned = set(plan.get("cells", ()))
    records = [record for record in view.records if not plan or record["cell"] in planned]
    done = Counter((record["task"], record["method"]) for record in records)
    totals = {(entry["task"], entry["method"]): entry["cells"] for entry in plan.get("totals", ())}
    done_of = f"{len(records)} of {counted(len(planned), 'cell')}" if plan else counted(len(records), "cell")
    lines = [f"{view.path}: {done_of} done"]
    names = sorted(done | totals)
    width = max((len(f"{task} {method}") for task, method in names), default=0)
    for task, method in names:
        total = f"/{totals[task, method]}" if (task, method) in totals else ""
        lines.append(f"  {f'{task} {method}':<{width}}  {done[task, method]}{total}")
    return "\n".join([*lines, *view.problems])


def explain(run: str | Path, cell: str) -> str:
    """All fields of a cell, dense's answer on the same sample, and the command that reruns it.

    Args:
        run: folder or name.
        cell: the cell's id, or a unique prefix of it.

    Raises:
        UserError: no such run; no or several such cells.
    """
    view = load(run)
    records = view.cells_of_methods()
    found = [record for record in records if record["cell"].startswith(cell)]
    if len(found) != 1:
        some = ", ".join(record["cell"] for record in (found or records)[:5])
        raise UserError(f"cell: {len(found)} cells begin with {cell!r}, give one id such as {some}")
    record = found[0]
    width = max(map(len, record))
    lines = [f"cell {record['cell']} of {view.path}"]
    lines += [
        f"  {name:<{width}}  {_plain(value)}"
        for name, value in record.items()
        if name not in ("cell", "command")
    ]
    dense = [
        other
        for other in records
        if other["method"] == "dense" and all(other.get(key) == record.get(key) for key in _PAIRING)
    ]
    if dense and record["method"] != "dense":
        lines += [
            "",
            f"dense on the same sample: score {_plain(dense[0]['score'])}",
            f"  {dense[0]['output']!r}",
        ]
    if "command" in record:
        lines += ["", "repeat with", f"  {record['command']}"]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_plain(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "-"
    if isinstance(value, str):
        return repr(value) if "\n" in value or value != value.strip() else value
    if isinstance(value, float):
        return number(value, ".4g")
    return "-" if value is None else str(value)
