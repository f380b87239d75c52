"""A run as an object: cells, summary, table and figures, from Python and notebooks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from kvbench.config.errors import UserError
from kvbench.config.files import write
from kvbench.report import caveats, failures, metrics, paired, plots, summary, tables
from kvbench.report.best import MARGIN, Best, best
from kvbench.report.format import Table
from kvbench.report.margins import KL_MARGIN
from kvbench.report.style import Figure
from kvbench.runs.plans import Planned
from kvbench.runs.store import Record, Store

RUNS = Path("results/runs")
PAIRED = "paired"
_CHECKOUT = Path(__file__).parents[2]
# fields of rows that no table or figure shows, each another text
_UNUSED = ("command", "output_raw")


def load(run: str | Path) -> Run:
    """Opens a run.

    Args:
        run: its folder, or its name under results/runs; a committed run also by its path in the checkout, from any
            folder. A name alone is that of a run in results/runs first.

    Raises:
        UserError: there is no such run, or it cannot be read.
    """
    places = [Path(run), RUNS / run]
    if len(Path(run).parts) == 1 and not Path(run).is_absolute():
        places.reverse()
    else:
        places.append(_CHECKOUT / run)
    for folder in places:
        if is_run(folder):
            return Run(folder)
    names = sorted(path.name for path in RUNS.glob("*") if path.is_dir())
    raise UserError(f"run: {run} is not a run folder; runs in {RUNS}: {', '.join(names) or 'none'}")


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: cells, a configuration, or at least a table."""
    named = any((folder / name).is_file() for name in ("config.yaml", "table.md"))
    return named or any(folder.glob("cells-*.jsonl*"))


class Run:
    """One run folder, read once.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name
        #: finished cells of methods; the vLLM experiments have other rows, and no summary
        self.columns, self.problems = Store(path).columns("method", _UNUSED)
        self._failures, unread = Store(path).failures()
        self.problems += unread
        self._judged: dict[tuple[float, float], Best] = {}

    @cached_property
    def records(self) -> list[Record]:
        """Finished cells of methods, with every field; of a large run they take much memory, `columns` does not."""
        return [row for row in Store(self.path).scan()[0] if "method" in row]

    @property
    def packed(self) -> bool:
        """Whether it is a committed run, with its cells in one file of `Store.pack`."""
        return any(self.path.glob("cells-*.jsonl.gz"))

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration of the last command."""
        return Store(self.path).config()

    @cached_property
    def plan(self) -> Planned:
        """All that was asked of the run's folder, by all commands."""
        return Store(self.path).planned()

    @property
    def failures(self) -> list[Record]:
        """Records of the cells that failed and are not finished; of the planned ones, if there is a plan."""
        planned = self.plan.cells
        return [record for record in self._failures if not planned or record["cell"] in planned]

    def cells(self) -> pd.DataFrame:
        """One row per finished cell: columns as recorded, and `budget_tokens`, see `summary.budget_tokens`.

        Raises:
            UserError: there is none.
        """
        if not self.columns and (others := Store(self.path).scan()[0]):
            return pd.DataFrame(others)
        cells = pd.DataFrame(self.cells_of_methods())
        return cells.assign(budget_tokens=summary.budget_tokens(cells))

    def cells_of_methods(self) -> list[Record]:
        """Records behind the summary, figures and report.

        Raises:
            UserError: there is none; names the files with the results of other experiments.
        """
        self._check_cells()
        return self.records

    def _check_cells(self) -> None:
        if self.columns:
            return
        files = self.files()
        if self.failures and not files:
            raise UserError(
                f"run: {self.path} has no finished cell, {len(self.failures)} failed: kvbench status"
            )
        if not files:
            raise UserError(f"run: {self.path} has no finished cell yet")
        names = [name.removesuffix(".csv") for name in files if name != "table.md"]
        frames = f" and .frame({names[0]!r})" if names else ""
        raise UserError(
            f"run: {self.path} has no cells of methods; its results are in {', '.join(files)} "
            f"(in Python: .table(){frames})"
        )

    def summary(self) -> pd.DataFrame:
        """Summary rows, the content of summary.csv."""
        return self._summary.copy()

    def table(self) -> str:
        """The content of table.md; for an experiment without cells, the file itself."""
        if not self.columns and "table.md" in self.files():
            return (self.path / "table.md").read_text(encoding="utf-8")
        return tables.markdown(
            self._summary, f"Run {self.name}", self.notes(), self.failures, self.further_tables()
        )

    def metrics(self) -> pd.DataFrame:
        """Metrics besides the score and averages over tasks, the content of metrics.csv; often without rows."""
        return metrics.further(self.prepared)

    def further_tables(self) -> list[Table]:
        """The rows of `metrics` as tables."""
        return metrics.tables(self.prepared)

    def files(self) -> list[str]:
        """Names of the table and the CSV files in the run's folder."""
        return sorted(
            path.name for path in self.path.glob("*") if path.name == "table.md" or path.suffix == ".csv"
        )

    def frame(self, name: str) -> pd.DataFrame:
        """A CSV file of the run's folder, as "costs" of claude_replay.

        Raises:
            UserError: no such file; lists the existing ones.
        """
        files = {path.stem: path for path in sorted(self.path.glob("*.csv"))}
        if name not in files:
            raise UserError(f"name: no file {name}.csv in {self.path}, but {', '.join(files) or 'none'}")
        return pd.read_csv(files[name])

    def __repr__(self) -> str:
        what = f"{len(self.columns)} cells" if self.columns else ", ".join(self.files()) or "no results yet"
        return f"Run({str(self.path)!r}: {what}; .summary(), .cells(), .table(), .best(), .plot(kind))"

    def _repr_markdown_(self) -> str:
        # how notebooks display a run
        return self.table()

    def best(self, within: float = MARGIN, kl: float = KL_MARGIN) -> Best:
        """Which method and budget to take: judged by a margin of the score and one of KL.

        Args:
            within: allowed loss of score.
            kl: allowed KL from dense in nats.

        Raises:
            UserError: a margin that is not above 0, or no scores beside dense's.
        """
        if (within, kl) not in self._judged:
            self._judged[within, kl] = best(self.prepared, self.name, self.failures, within, kl)
        return self._judged[within, kl]

    def notes(self) -> list[str]:
        """Everything that weakens the numbers: missing cells, mixed devices, unreadable lines."""
        return caveats.find(self.prepared, self.plan, self.problems, self.failures)

    def figures(self, kind: str, **where: object) -> Iterator[tuple[str, Figure]]:
        """All figures of a kind with their file names; same arguments as `plot`."""
        from_cells = plots.KINDS[kind].from_cells
        source = self.prepared if from_cells else summary.pooled(self._summary)
        return plots.figures(kind, _where(source, where))

    def plot(self, kind: str, *methods: str, **where: object) -> Figure:
        """One figure.

        Args:
            kind: a key of `kvbench.report.plots.KINDS`; or "paired", with two methods: the first minus the second,
                prompt by prompt.
            *methods: names of methods in the run, for "paired".
            **where: values to keep by column, as `protocol="query_aware"`; several values as a list.

        Raises:
            UserError: no such kind or column, nothing to draw, or more than one figure.
        """
        if kind == PAIRED:
            return self._paired(methods, where)
        if kind not in plots.KINDS:
            raise UserError(f"kind: {kind!r} is not one of {', '.join([*plots.KINDS, PAIRED])}")
        if methods:
            raise UserError(
                f"kind: {kind!r} takes no methods; choose rows by a column, as method={methods[0]!r}"
            )
        found = dict(self.figures(kind, **where))
        if not found:
            raise UserError(f"kind: this run has nothing to draw as {kind!r} (with {where or 'no filter'})")
        if len(found) > 1:
            raise UserError(
                f"kind: {len(found)} figures of {kind!r}, choose one by a column: {', '.join(found)}"
            )
        return found.popitem()[1]

    def _paired(self, methods: Sequence[str], where: dict[str, object]) -> Figure:
        if len(methods) != 2:
            raise UserError("methods: 'paired' takes two of the run, as .plot('paired', 'snapkv', 'chunkkv')")
        cells = _where(self.prepared, where)
        several = [name for name in summary.SETTING if cells[name].nunique(dropna=False) > 1]
        if several:
            raise UserError(f"{several[0]}: the run has several; choose one, as {several[0]}=...")
        return paired.figure(cells, *methods)

    def to_parquet(self, path: str | Path) -> None:
        """Write the rows of `cells` to a Parquet file, mappings as JSON text; needs the extra `export`.

        Args:
            path: the file.

        Raises:
            UserError: pyarrow is missing, there is no finished cell, or the file cannot be written.
        """
        cells = self.cells()
        for name in cells.columns:
            if cells[name].map(lambda value: isinstance(value, dict)).any():
                cells[name] = cells[name].map(lambda value: json.dumps(value, sort_keys=True))
        try:
            write(path, cells.to_parquet(None, engine="pyarrow", index=False), "path")
        except ImportError:
            raise UserError("to_parquet: needs pyarrow, as pip install 'kvbench[export]' brings it") from None

    @cached_property
    def prepared(self) -> pd.DataFrame:
        """Cells with labels and dense's values, see `summary.prepare`."""
        self._check_cells()
        return summary.prepare(self.columns.frame())

    @cached_property
    def _summary(self) -> pd.DataFrame:
        return failures.with_failed(summary.summarise(self.prepared, self.name), self.failures)


def _where(frame: pd.DataFrame, where: dict[str, object]) -> pd.DataFrame:
    for column, value in where.items():
        if column not in frame:
            raise UserError(f"{column}: not a column, the columns are {', '.join(frame.columns)}")
        frame = frame[frame[column].isin(value if isinstance(value, list) else [value])]
    return frame
