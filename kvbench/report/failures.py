"""Failed cells in a report: how many each row lacks, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kvbench.config.text import counted
from kvbench.report.format import Table
from kvbench.report.summary import ALL_SEEDS, ROW, budget_key
from kvbench.runs.store import Record

_CAPTION = (
    "A failed cell has no score: means are over the finished cells, and so may look better than they are. Classes: not "
    "finite (NaN or an infinity), out of memory, audit (the cache is not what the method promises), refused (a setting "
    "that this prompt does not allow), raised (an exception), dense (dense failed on the prompt)."
)


def with_failed(summary: pd.DataFrame, failures: Sequence[Record]) -> pd.DataFrame:
    """The summary with the failed cells of each row in `n_failed`, and in its verdict.

    Args:
        summary: from `summary.summarise`.
        failures: records of failed cells.
    """
    by_row = Counter((*_key(record), seed) for record in failures for seed in (record["seed"], ALL_SEEDS))
    failed = [by_row[*_key(row), row["seed"]] for row in summary.to_dict("records")]
    summary = summary.assign(n_failed=failed)
    some = (summary["n_failed"] > 0) & (summary["verdict"] != "")
    notes = [note(k, n) for k, n in zip(failed, summary["n_cells"], strict=True)]
    summary.loc[some, "verdict"] += "; " + pd.Series(notes, index=summary.index)[some]
    return summary


def note(failed: int, finished: int) -> str:
    """`2 of 20 failed`."""
    return f"{failed} of {failed + finished} failed"


def table(summary: pd.DataFrame, failures: Sequence[Record]) -> Table | None:
    """One row per task, length, method and budget with failed cells; None if there is none."""
    finished = {
        _key(row): row["n_cells"]
        for row in summary.to_dict("records")
        if row["seed"] == ALL_SEEDS or (summary["seed"] != ALL_SEEDS).all()
    }
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in sorted(failures, key=_order):
        groups.setdefault(_key(record), []).append(record)
    if not groups:
        return None
    rows = []
    for key, group in groups.items():
        first = group[0]
        kinds = Counter(record["failure"].replace("_", " ") for record in group)
        why = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        batch = first.get("batch")
        rows.append(
            [
                first["model"],
                first["protocol"],
                first["task"],
                str(first["length"] or ""),
                "" if batch is None else str(batch),
                first["method"],
                first["budget_requested"],
                note(len(group), int(finished.get(key, 0))),
                why,
                str(first["reason"])[:200],
            ]
        )
    header = [
        "model",
        "protocol",
        "task",
        "length",
        "batch",
        "method",
        "budget",
        "failed",
        "classes",
        "the first",
    ]
    return Table("Failures", _CAPTION, header, rows)


def sentence(failures: Sequence[Record]) -> str | None:
    """A caveat for the top of the page; None without failures."""
    if not failures:
        return None
    methods = Counter(record["method"] for record in failures)
    which = ", ".join(f"{method} {count}" for method, count in methods.most_common())
    return (
        f"{counted(len(failures), 'cell')} failed ({which}): rows with `failed` are means over fewer samples, see the "
        "table Failures"
    )


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells summary rows apart, from one of them or from a failure."""
    values = {name: row.get(name) for name in ROW}
    if isinstance(values["params"], Mapping):
        values["params"] = json.dumps(values["params"], sort_keys=True)
    if values["wording"] is None:
        values["wording"] = "-"
    batch = values["batch"]
    values["batch"] = None if batch is None or pd.isna(batch) else int(batch)
    return tuple(str(values[name]) for name in ROW)


def _order(record: Record) -> tuple[Any, ...]:
    return (
        *(record[name] for name in ("model", "protocol", "length", "task")),
        record.get("batch") or 0,
        record["method"],
        budget_key(record["budget_requested"]),
        record["seed"],
        record["sample"],
    )
