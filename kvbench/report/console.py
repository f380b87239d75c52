"""Text about a run for the command line."""

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.text import counted
from kvbench.report import tables
from kvbench.report.format import number
from kvbench.report.run import RUNS, Run, is_run, load
from kvbench.runs.claims import Claims, dead_here, parsed
from kvbench.runs.plans import Planned
from kvbench.runs.progress import clock
from kvbench.runs.store import Record
from kvbench.runs.told import listed, told

# fields of a record by which `explain` finds a cell, besides any other field under its own name
_SELECTORS = {"budget": "budget_requested"}
_PAIRING = ("model", "dtype", "task", "length", "protocol", "timing", "seed", "sample", "sample_hash")


def runs() -> list[dict[str, Any]]:
    """The runs in results/runs, the newest first: name, cells done and planned, experiment."""
    folders = [path for path in RUNS.glob("*") if path.is_dir() and is_run(path)]
    folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [_run(folder) for folder in folders]


def _run(folder: Path) -> dict[str, Any]:
    view = load(folder)
    done, planned = _counts(view)
    description = f"experiment={view.config.get('name', '?')}"
    if not planned and not done:
        description = f"results in {', '.join(view.files()) or 'no file yet'}"
    return {
        "name": folder.name,
        "cells": f"{done}/{planned}" if planned else str(done),
        "description": description,
    }


def _counts(view: Run) -> tuple[int, int]:
    """Finished cells of the plan, and cells of the plan; without a plan, all finished cells and 0."""
    planned = view.plan.cells
    done = sum(not planned or cell in planned for cell in view.columns["cell"])
    return done, len(planned)


def status(run: str | Path) -> str:
    """Progress of a run by task and method, against all that its commands asked for; failed cells, a line each."""
    view = load(run)
    plan = view.plan
    if not view.columns and not plan.plans and view.files():
        return f"{view.path}: no cells of methods; results are in {', '.join(view.files())}"
    columns, failures = view.columns, view.failures
    what = {
        cell: (task, method)
        for cell, task, method in zip(columns["cell"], columns["task"], columns["method"], strict=True)
        if not plan.plans or cell in plan.cells
    }
    finished = len(what)
    done = Counter(what.values())
    what |= {record["cell"]: (record["task"], record["method"]) for record in failures}
    totals = plan.count(what)
    failed = Counter(what[record["cell"]] for record in failures)
    done_of = f"{finished} of {counted(len(plan.cells), 'cell')}" if plan.plans else counted(finished, "cell")
    lines = [f"{view.path}: {done_of} done" + (f", {len(failures)} failed" if failures else "")]
    names = sorted({*done, *totals, *failed})
    width = max((len(_named(name)) for name in names), default=0)
    for name in names:
        total = f"/{totals[name]}" if name in totals else ""
        lines.append(
            f"  {_named(name):<{width}}  {done[name]}{total}"
            + (f", {failed[name]} failed" if failed[name] else "")
        )
    lines += _unfinished(plan, set(what))
    lines += [f"failed: {line}" for line in listed(failures, view.path)]
    if failures:
        lines.append("retry_failed=true runs the failed cells again")
    return "\n".join([*lines, *view.problems])


def overview_of(run: str | Path) -> dict[str, Any]:
    """What `status` says, as plain values: counts, what is being worked on, failures, plans that are not finished."""
    view = load(run)
    plan, failures = view.plan, view.failures
    done, planned = _counts(view)
    workers = working(view.path)
    settled = {*view.columns["cell"], *(record["cell"] for record in failures)}
    return {
        "run": str(view.path),
        "planned": planned or done,
        "done": done,
        "failed": len(failures),
        "complete": bool(planned) and done == planned,
        "working": workers,
        "seconds_left": seconds_left(planned - done - len(failures), workers),
        "unfinished": [
            {"file": one.file, "command": one.command, "missing": missing}
            for one, missing in plan.unfinished(settled)
        ],
        "failures": [told(record) for record in failures],
        "problems": view.problems,
    }


def working(folder: Path) -> list[dict[str, Any]]:
    """The claims of a folder: worker, prompt, and the count that it gives as a sign of life."""
    claims = Claims(folder, "", 1.0)
    found = []
    for key, generation in sorted(claims.listed().items()):
        try:
            said = parsed((claims.folder / f"{key}.{generation}").read_bytes())
        except OSError:
            # let go meanwhile
            continue
        names = ("worker", "prompt", "beat", "done", "tokens", "seconds", "memory")
        found.append({**{name: said.get(name) for name in names}, "dead": dead_here(said)})
    return found


def watched(run: str | Path, before: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """`status` with the workers, and those; silent ones are those whose count is as it was before.

    Args:
        run: folder or name.
        before: the workers of the last look.
    """
    view = load(run)
    now = working(view.path)
    beats = {one["worker"]: one["beat"] for one in before}
    lines = []
    for one in now:
        state = "dead" if one["dead"] else "silent" if beats.get(one["worker"]) == one["beat"] else "alive"
        parts = [f"working: {one['worker']} on {one['prompt'] or '?'}", f"{one['done'] or 0} cells done"]
        if one["seconds"]:
            parts.append(f"{one['tokens'] / one['seconds']:,.0f} tokens/s")
        parts += [f"{one['memory'] / 1e9:.1f} GB"] if one["memory"] else []
        lines.append(", ".join([*parts, state]))
    done, planned = _counts(view)
    if (left := seconds_left(planned - done - len(view.failures), now)) is not None:
        lines.append(f"left: about {clock(left)}")
    return "\n".join([status(run), *lines]), now


def seconds_left(cells: int, workers: Sequence[Mapping[str, Any]]) -> float | None:
    """Time for the cells that are left, at the rate at which each worker has finished cells so far; None if unknown.

    Args:
        cells: number of them.
        workers: from `working`; dead ones do nothing more.
    """
    rates = (
        one["done"] / one["seconds"] for one in workers if one["seconds"] and one["done"] and not one["dead"]
    )
    rate = math.fsum(rates)
    return max(0, cells) / rate if rate else None


def _named(name: tuple[str, str]) -> str:
    return " ".join(name).strip() or "not known yet"


def _unfinished(plan: Planned, settled: set[str]) -> Iterator[str]:
    """Where several commands asked for cells, those that are not finished: how to go on with each, or to drop it."""
    if len(plan.plans) < 2:
        return
    for one, missing in plan.unfinished(settled):
        command = one.command or "an earlier command"
        yield f"unfinished: {missing} of {counted(len(one.cells), 'cell')} of {command}; delete {one.file} to drop it"


def finding(run: Run) -> str:
    """What a run found, for the end of a command: caveats, the methods that are good enough, where more is.

    A run without scores beside dense's gets its tables.
    """
    lines = [f"note: {line}" for line in run.notes()]
    try:
        text = run.best().text(brief=True)
        more = (
            f"kvbench best {shlex.quote(_argument(run))} judges every task and budget, by other margins too"
        )
    except UserError:
        text = "\n\n".join(table.text() for table in tables.all_tables(run.summary(), run.failures))
        more = ""
    return "\n\n".join(part for part in ("\n".join(lines), text, more) if part)


def _argument(run: Run) -> str:
    """The shortest name by which commands find a run."""
    return run.path.name if run.path.parent == RUNS else str(run.path)


#: fields that hold a sample's text, and what stands for them where a task hides it
_TEXTS, _NOT_SHOWN = ("output", "output_ids"), "(not shown)"


def explain(run: str | Path, *cell: str) -> str:
    """All fields of a cell, dense's answer on the same sample, and the command that reruns it.

    Args:
        run: folder or name.
        cell: the cell's id, or a unique prefix of it; or `FIELD=VALUE` words that only one cell meets, as
            `method=snapkv`, `budget=128`, `sample=0`.

    Raises:
        UserError: no such run; no or several such cells.
    """
    view, record = load(run), find(run, *cell)
    records = view.cells_of_methods()
    hidden = (record.get("meta") or {}).get("hidden")
    width = max(map(len, record))
    lines = [f"cell {record['cell']} of {view.path}"]
    lines += [
        f"  {name:<{width}}  {_NOT_SHOWN if hidden and name in _TEXTS else _plain(value)}"
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
            f"  {_NOT_SHOWN if hidden else repr(dense[0]['output'])}",
        ]
    if "command" in record:
        lines += ["", "repeat with", f"  {record['command']}"]
    return "\n".join(lines)


def find(run: str | Path, *cell: str) -> Record:
    """The row of the cell that `explain` is asked for.

    Raises:
        UserError: no such run; no or several such cells.
    """
    records = load(run).cells_of_methods()
    found = [record for record in records if all(_meets(record, word) for word in cell)]
    if len(found) != 1:
        raise UserError(_not_one(records, found, cell))
    return found[0]


def _meets(record: Record, word: str) -> bool:
    """Whether a cell has the value of a word `FIELD=VALUE`, or an id that begins with the word."""
    name, equals, value = word.partition("=")
    if not equals:
        return record["cell"].startswith(word)
    return str(record.get(_SELECTORS.get(name, name))) == value


def _not_one(records: Sequence[Record], found: Sequence[Record], words: Sequence[str]) -> str:
    """The message for words that no cell meets, or several."""
    given = " ".join(words).strip() or "an empty condition"
    for word in words:
        name, equals, value = word.partition("=")
        field = _SELECTORS.get(name, name)
        values = dict.fromkeys(str(record.get(field)) for record in records if field in record)
        if equals and not values:
            return f"cell: there is no field {name!r}; take method, budget, task, length, sample, protocol or seed"
        if equals and value not in values:
            return f"cell: no cell has {name}={value}, but {', '.join(list(values)[:12])}"
    if found:
        names = ("method", "budget", "task", "length", "protocol", "seed", "sample")
        values = {name: {str(record.get(_SELECTORS.get(name, name))) for record in found} for name in names}
        more = ", ".join(f"{name}=..." for name in names if len(values[name]) > 1) or "the id"
        return f"cell: {len(found)} cells match {given}; add {more}"
    if len(words) > 1:
        return f"cell: no cell has {given}"
    some = ", ".join(record["cell"] for record in records[:5])
    return (
        f"cell: no cell's id begins with {given!r}; give one such as {some}, or method=NAME budget=N sample=N"
    )


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
