"""An index of runs as a page: a leaderboard of methods over tasks, and a link to every run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kvbench.config.files import write
from kvbench.report.best import AT_FLOOR, MARGIN
from kvbench.report.html import explorers
from kvbench.report.margins import KL_MARGIN
from kvbench.report.page import Column, Explorer, Link, Page
from kvbench.report.run import RUNS, is_run
from kvbench.report.summary import EARLIER, budget_key

RESULTS = Path("results")
INDEX = "index.html"
CLAIMS = "claims.html"
# what is as good as dense, in the order in which the page offers it
_RULES: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    f"KL from dense below {KL_MARGIN:g} nats": lambda row: row["kl_high"] < KL_MARGIN,
    f"score within {MARGIN:g} of dense": lambda row: (
        row["difference_low"] > -MARGIN and row["verdict"] != AT_FLOOR
    ),
}
_PLACE = ("run", "model", "protocol", "task", "length", "family")
_TAKEN = ("read_share", "resident_share", "kept")
_FILTERS = ("run", "budget", "model", "protocol", "task", "length", "family")
_PAGES = ("report.html", "table.md")


def write_index() -> Path:
    """Write the index of the runs in results/runs and of the committed ones in results; returns its path."""
    return write(RUNS / INDEX, index([*runs_in(RUNS), *runs_in(RESULTS)], RUNS).html())


def runs_in(root: Path) -> list[Path]:
    """Folders of runs under a folder, sorted; those of results/runs only if that is the folder.

    Args:
        root: results/runs, or a folder of committed results.
    """
    folders = {path.parent for name in _PAGES for path in root.glob(f"**/{name}")}
    return sorted(
        folder for folder in folders if is_run(folder) and RUNS.name not in folder.relative_to(root).parts
    )


def index(folders: Sequence[Path], at: Path) -> Page:
    """The page of some runs.

    Args:
        folders: theirs.
        at: the folder of the page, for its links.
    """
    summaries = [frame for folder in folders if (frame := _summary(folder)) is not None]
    boards = []
    if summaries:
        together = pd.concat(summaries, ignore_index=True)
        boards = [leaderboard(together), *matched(together)]
    return Page(
        title="kvbench: all runs",
        lead=f"{len(folders)} runs. Their pages say of each number whether it is measured, modelled or from a paper.",
        explorers=boards,
        links=[*_claims(at), *(_link(folder, at) for folder in folders)],
    )


def leaderboard(summary: pd.DataFrame) -> Explorer:
    """Methods by tasks, of the rows of several runs.

    Args:
        summary: rows of their summary.csv, with the name of each run in `run`.
    """
    first = explorers(summary)[0]
    used = {first.series, "reference", *_FILTERS, *first.y, *first.marks.values()}
    used |= {bound for name in first.y for bound in first.intervals.get(name, ())}
    largest = summary["run"].mode().iloc[0]
    budgets = sorted(
        {row["budget"] for row in first.rows if row["budget"] and row["run"] == largest}, key=budget_key
    )
    return Explorer(
        title="Leaderboard",
        caption="Each method on each task: mean over samples [95 % interval]. Compare methods within a column, and "
        "within a run: others have other prompts. The mean is over columns, for methods that have all of them.",
        rows=[{name: value for name, value in row.items() if name in used} for row in first.rows],
        columns={**first.columns, "run": Column("run")},
        series=first.series,
        styles=first.styles,
        table=(),
        pivot=("task", "length"),
        x=(),
        y=first.y,
        intervals={name: first.intervals[name] for name in first.y if name in first.intervals},
        filters=_FILTERS,
        chosen={"run": largest} | ({"budget": budgets[-1]} if budgets else {}),
        loose=first.loose,
        marks=first.marks,
    )


def matched(summary: pd.DataFrame) -> list[Explorer]:
    """What each method takes at its smallest budget that is as good as dense, by a margin; nothing where none is.

    Args:
        summary: as for `leaderboard`.
    """
    first = explorers(summary)[0]
    rows = [
        {**_smallest(group), "rule": rule}
        for rule, good in _RULES.items()
        for group in _by_method(row for row in first.rows if not row["reference"] and good(row))
    ]
    if not rows:
        return []
    used = {first.series, "reference", "rule", *_PLACE, *_TAKEN}
    largest = pd.Series([row["run"] for row in rows]).mode().iloc[0]
    return [
        Explorer(
            title="At matched accuracy",
            caption="What each method takes at the smallest of its budgets whose whole 95 % interval is within the "
            "margin against dense; - where no budget of the run is, be it worse or too few samples to tell. Methods "
            "for which that is so everywhere are left out. Choosing the smallest of several budgets is not corrected "
            "for. Less is better.",
            rows=[{name: value for name, value in row.items() if name in used} for row in rows],
            columns={**first.columns, "run": Column("run"), "rule": Column("margin")},
            series=first.series,
            styles=first.styles,
            table=(),
            pivot=("task", "length"),
            x=(),
            y=_TAKEN,
            filters=("rule", *(name for name in _FILTERS if name != "budget")),
            chosen={
                "run": largest,
                "rule": next(rule for rule in _RULES if any(r["rule"] == rule for r in rows)),
            },
        )
    ]


def _by_method(rows: Iterable[Mapping[str, Any]]) -> Iterable[list[Mapping[str, Any]]]:
    """Rows of one method on one task in one run."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in ("label", *_PLACE)), []).append(row)
    return groups.values()


def _smallest(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return min(rows, key=lambda row: (row["read_share"], budget_key(row["budget"])))


def _claims(at: Path) -> list[Link]:
    """A link to the committed page of published numbers, where there is one."""
    page = next((place for place in (at / CLAIMS, RESULTS / CLAIMS) if place.is_file()), None)
    if page is None:
        return []
    return [
        Link(
            Path(os.path.relpath(page, at)).as_posix(), "claims", "published numbers, what we find, a verdict"
        )
    ]


def _summary(folder: Path) -> pd.DataFrame | None:
    """The rows of a run's summary.csv; None without one, or where it has other columns."""
    path = folder / "summary.csv"
    if not path.is_file():
        return None
    frame = pd.read_csv(path, dtype={"budget_requested": str})
    if not set(EARLIER) <= set(frame.columns):
        return None
    return frame.assign(budget_requested=frame["budget_requested"].fillna(""), run=folder.name)


def _link(folder: Path, at: Path) -> Link:
    page = next(folder / name for name in _PAGES if (folder / name).is_file())
    target = Path(os.path.relpath(page, at)).as_posix()
    return Link(target, Path(target).parent.as_posix().replace("../", ""), _about(folder))


def _about(folder: Path) -> str:
    """The heading of its table, where that says more than its name."""
    table = folder / "table.md"
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    heading = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "")
    return "" if heading.endswith(folder.name) else heading
