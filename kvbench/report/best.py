"""Which method to take: what loses less than a margin, what loses more, and where a run cannot tell."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kvbench.config.errors import UserError
from kvbench.config.text import counted
from kvbench.report import margins
from kvbench.report.failures import note
from kvbench.report.format import MB, MISSING, Table, number
from kvbench.report.margins import KL_MARGIN, OVER_TASKS
from kvbench.report.summary import METHOD, SETTING, budget_key, is_loss
from kvbench.runs.store import Record

MARGIN = 0.05
WITHIN, UNKNOWN, WORSE, AT_FLOOR = "within", "cannot be told", "worse", "floor"
STATES = (WITHIN, UNKNOWN, WORSE)
# bounds, which nobody can run: they are in the tables, and are not recommended
ORACLES = frozenset({"static_oracle", "topk_oracle"})

_TABLE = [*SETTING, "length"]
_NOT_CORRECTED = "Each row is judged alone, at 95 %; choosing the smallest of several is not corrected for."


@dataclass(frozen=True)
class Best:
    """Every method and budget of a run, judged by a margin of the score and one of KL.

    Attributes:
        name: of the run.
        rows: from `judged`.
        margin: allowed loss of score.
        kl_margin: allowed KL in nats.
        failed: methods of which every cell failed.
    """

    name: str
    rows: pd.DataFrame
    margin: float
    kl_margin: float
    failed: Sequence[str] = ()

    def answer(self) -> list[str]:
        """The finding in sentences: for each setting and length, by the score and then by KL."""
        lines = []
        for _, rows in self._settings():
            where = f"{_name(rows)}: " if self.rows.groupby(_TABLE, dropna=False).ngroups > 1 else ""
            lines.append(where + _finding(rows, self.margin))
            if rows["kl_state"].ne("").any():
                lines.append(where + _kl_finding(rows, self.kl_margin))
        if self.failed:
            lines.append(f"Every cell failed of {', '.join(self.failed)}.")
        return lines

    def tables(self) -> list[Table]:
        """For each setting and length, over tasks and per task, the smallest budget of each state of each method."""
        return [table for _, rows in self._settings() for table in self._judgements(rows, _smallest)]

    def overview(self) -> list[Table]:
        """For each setting and length, one row per method over tasks: its best state and the smallest budget of it."""
        found = []
        for _, rows in self._settings():
            found += self._judgements(rows[rows["task_label"] == OVER_TASKS], _best_of_each)
        return found

    def text(self, brief: bool = False) -> str:
        """Sentences and tables for a terminal."""
        tables = self.overview() if brief else self.tables()
        return "\n\n".join(["\n".join(self.answer()), *(table.text() for table in tables)])

    def smallest_within(self) -> dict[str, str]:
        """The smallest budget within the margin of the score over tasks, by label; methods without one are left out.

        Raises:
            UserError: the run has several settings or lengths.
        """
        if self.rows.groupby(_TABLE, dropna=False).ngroups > 1:
            raise UserError(f"run: {self.name} has several models, protocols or lengths; give a run with one")
        over = _over(self.rows)
        good = over[over["state"] == WITHIN].groupby("label", sort=True)
        return {str(label): str(_order(group)["budget_requested"].iloc[0]) for label, group in good}

    def json(self) -> str:
        """Margins, sentences and all rows; what is not a finite number is null."""
        rows = [{key: _plain(value) for key, value in row.items()} for row in self.rows.to_dict("records")]
        content = {"run": self.name, "within": self.margin, "kl": self.kl_margin, "answer": self.answer()}
        return json.dumps(content | {"failed": list(self.failed), "rows": rows}, indent=1, allow_nan=False)

    def __repr__(self) -> str:
        return self.text(brief=True)

    def _repr_markdown_(self) -> str:
        return "\n\n".join([*self.answer(), *(table.markdown() for table in self.overview())])

    def _settings(self) -> list[tuple[Any, pd.DataFrame]]:
        return list(self.rows.groupby(_TABLE, dropna=False, sort=False))

    def _judgements(self, rows: pd.DataFrame, chosen: Any) -> list[Table]:
        states = "cannot be told: the estimate does, the interval does not."
        title = f"Score within {self.margin:g} of dense's: {_name(rows)}"
        caption = (
            f"{_reference(rows)} within: the 95 % interval of the paired difference lies above -{self.margin:g}; "
            f"{states} n needed: if differences stay as they are. {_NOT_CORRECTED}"
        )
        found = [_table(title, caption, chosen(rows, "state"), "difference", _difference)]
        if rows["kl_state"].ne("").any():
            title = f"KL from dense below {self.kl_margin:g} nats: {_name(rows)}"
            caption = (
                f"{_reference(rows)} within: the 95 % interval of the mean KL lies below {self.kl_margin:g}; {states} "
                f"p: of a mean KL of {self.kl_margin:g} or more. {_NOT_CORRECTED}"
            )
            found.append(_table(title, caption, chosen(rows, "kl_state"), "KL (nats)", _kl))
        return found


def best(
    cells: pd.DataFrame, name: str, failures: Sequence[Record] = (), margin: float = MARGIN,
    kl_margin: float = KL_MARGIN,
) -> Best:  # fmt: skip
    """Judges every method and budget of a run.

    Args:
        cells: from `summary.prepare`.
        name: of the run.
        failures: records of failed cells.
        margin: allowed loss of score, above 0.
        kl_margin: allowed KL in nats, above 0.

    Raises:
        UserError: a margin that is not a number above 0, or nothing to compare with dense.
    """
    for text, value in (("within", margin), ("kl", kl_margin)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{text}: {value!r} is not a number, give one above 0")
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{text}: {value:g} is not allowed, give a number above 0")
    rows = judged(cells, margin, kl_margin, failures)
    if rows.empty:
        raise UserError(f"run: {name} has no scores of methods beside dense's on the same samples")
    lost = sorted({record["method"] for record in failures} - set(cells["method"]))
    return Best(name, rows, margin, kl_margin, lost)


def judged(
    cells: pd.DataFrame, margin: float, kl_margin: float, failures: Sequence[Record] = ()
) -> pd.DataFrame:
    """The rows of `margins.losses` with a state by each margin; budgets that cover every prompt are left out.

    A row with failed cells, or with fewer tasks than others, is never `within`.

    Args:
        cells: from `summary.prepare`.
        margin: allowed loss of score, above 0.
        kl_margin: allowed KL in nats.
        failures: records of failed cells.

    Returns:
        Further columns: `state`, `kl_state` ("" without KL), `kl_n_needed`, `n_failed`, `oracle`, `resident_share`,
        `read_share`, `dense_score`, `dense_bytes_resident`, `dense_bytes_read_per_step` (of the same samples), and
        `state_above`, `kl_state_above` (a larger budget that is worse, of rows that are within),
        `decode_ms_per_token` (median of one method at a time and the smallest batch, where that was measured).
    """
    # a margin of the score is one of shares
    scored = cells[cells["difference"].notna() & ~is_loss(cells)]
    covered = scored.groupby([*_TABLE, *METHOD], dropna=False)["budget_covers_prompt"].transform("all")
    scored = scored[scored["is_dense"] | ~covered.astype(bool)]
    if scored["is_dense"].all():
        return pd.DataFrame()
    rows = margins.losses(scored, margin, kl_margin)
    rows["n_failed"] = _failed(rows, cells, failures)
    rows["oracle"] = [bool({row.eviction, row.selection} & ORACLES) for row in rows.itertuples()]
    rows = rows.merge(_dense(scored), on=[*_TABLE, "task_label"], how="left")
    rows["resident_share"] = rows["bytes_resident"] / rows["dense_bytes_resident"]
    rows["read_share"] = rows["bytes_read_per_step"] / rows["dense_bytes_read_per_step"]
    key = ["model", "length", "label", "budget_requested"]
    rows = rows.merge(_times(cells), on=key, how="left")
    tasks = rows.groupby([*_TABLE, "task_label"], dropna=False)["tasks"].transform("max")
    rows["all_tasks"] = tasks
    whole = (rows["n_failed"] == 0) & (rows["tasks"] == tasks)
    floor, within, inside = rows["floor"].astype(bool), rows["within"].astype(bool), rows["delta"] > -margin
    rows["state"] = np.select([floor, within & whole, inside], [AT_FLOOR, WITHIN, UNKNOWN], WORSE)
    inside, within = rows["kl"] < kl_margin, rows["kl_ci_high"] < kl_margin
    rows["kl_state"] = np.select([rows["kl"].isna(), within & whole, inside], ["", WITHIN, UNKNOWN], WORSE)
    for state in ("state", "kl_state"):
        rows[f"{state}_above"] = _worse_above(rows, state)
    rows["kl_n_needed"] = [_kl_needed(row.kl, row.kl_ci_high, row.n, kl_margin) for row in rows.itertuples()]
    return rows


def _worse_above(rows: pd.DataFrame, state: str) -> pd.Series:
    """For rows that are within: the smallest larger budget of the method that is worse, otherwise ""."""
    found = pd.Series("", index=rows.index)
    for _, group in rows.groupby([*_TABLE, "task_label", "label"], dropna=False):
        worse = ""
        for index, row in _order(group).iloc[::-1].iterrows():
            if row[state] == WORSE:
                worse = row["budget_requested"]
            elif row[state] == WITHIN:
                found[index] = worse
    return found


def _kl_needed(kl: float, high: float, n: int, margin: float) -> float:
    """Samples that would bring the upper bound below the margin, if it came closer as 1/sqrt(n)."""
    if not (kl < margin and math.isfinite(high)):
        return math.nan
    return (
        float(max(n + 1, math.ceil(n * ((high - kl) / (margin - kl)) ** 2))) if high >= margin else float(n)
    )


def _dense(scored: pd.DataFrame) -> pd.DataFrame:
    """Score and bytes of dense per task, and over tasks that are not at the floor."""
    values = {"score": "dense_score"} | {
        name: f"dense_{name}" for name in ("bytes_resident", "bytes_read_per_step")
    }
    dense = scored[scored["is_dense"]]
    by_task = dense.groupby([*_TABLE, "task_label"], dropna=False)[list(values)].mean().reset_index()
    kept = by_task[by_task["score"] >= margins.stats.FLOOR]
    over = kept.groupby(_TABLE, dropna=False)[list(values)].mean().reset_index()
    return pd.concat([by_task, over.assign(task_label=OVER_TASKS)]).rename(columns=values)


def _times(cells: pd.DataFrame) -> pd.DataFrame:
    key = ["model", "length", "label", "budget_requested"]
    alone = cells[cells["timing"] == "isolated"]
    if len(alone):
        smallest = alone.groupby(["model", "length"])["batch"].transform("min")
        alone = alone[alone["batch"] == smallest]
    return alone.groupby(key)["decode_ms_per_token"].median().reset_index()


def _failed(rows: pd.DataFrame, cells: pd.DataFrame, failures: Sequence[Record]) -> list[int]:
    """Failed cells of each row: of its task, or of all tasks."""
    named = cells.drop_duplicates(["method", "params"])[["method", "params", "label"]]
    labels = {(row.method, row.params): row.label for row in named.itertuples()}
    tasks = dict(zip(cells["task"], cells["task_label"], strict=True))

    def meets(record: Record, row: Any) -> bool:
        params = json.dumps(record.get("params", {}), sort_keys=True)
        same = labels.get((record["method"], params)) == row.label and all(
            str(record.get(name)) == str(getattr(row, name))
            for name in ("model", "protocol", "length", "budget_requested")
        )
        task = tasks.get(record["task"], record["task"])
        return same and record.get("batch") is None and row.task_label in (OVER_TASKS, task)

    return [sum(meets(record, row) for record in failures) for row in rows.itertuples()]


def _order(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a method from the smallest budget on; tokens and shares of the prompt by the bytes that they read."""
    keys = [budget_key(budget) for budget in rows["budget_requested"]]
    mixed = len({key[0] for key in keys}) > 1
    by = rows["bytes_read_per_step"].tolist() if mixed else [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: (by[i], keys[i]))
    return rows.iloc[order]


def _methods(rows: pd.DataFrame, state: str) -> list[pd.DataFrame]:
    """The rows of each method, methods with the best state and the fewest bytes first."""
    groups = [_order(group) for _, group in rows.groupby("label", sort=True)]
    return sorted(groups, key=lambda group: _rank(_pick(group, state), state))


def _pick(rows: pd.DataFrame, state: str) -> pd.Series:
    """The row that stands for a method: the smallest budget of its best state; of none, the closest."""
    for wanted in (WITHIN, UNKNOWN):
        found = rows[rows[state] == wanted]
        if len(found):
            return found.iloc[0]
    closeness = rows["delta"] if state == "state" else -rows["kl"]
    return rows.loc[closeness.idxmax()] if closeness.notna().any() else rows.iloc[0]


def _rank(row: pd.Series, state: str) -> tuple[Any, ...]:
    place = (*STATES, AT_FLOOR, "").index(row[state])
    loss = -row["delta"] if state == "state" else row["kl"]
    return (place, 0 if place == 0 else loss, row["bytes_resident"], row["bytes_read_per_step"], row["label"])


def _best_of_each(rows: pd.DataFrame, state: str) -> list[pd.Series]:
    return [_pick(group, state) for group in _methods(rows, state)]


def _smallest(rows: pd.DataFrame, state: str) -> list[pd.Series]:
    """Over tasks and for each task, the smallest budget of each state of each method."""
    tasks = [OVER_TASKS, *sorted(set(rows["task_label"]) - {OVER_TASKS})]
    found = []
    for task in tasks if len(tasks) > 2 else tasks[:1]:
        for group in _methods(rows[rows["task_label"] == task], state):
            for wanted in (*STATES, AT_FLOOR):
                found += [row for _, row in group[group[state] == wanted].iloc[:1].iterrows()]
    return found


def _table(title: str, caption: str, rows: Sequence[pd.Series], what: str, values: Any) -> Table:
    timed = any(pd.notna(row["decode_ms_per_token"]) for row in rows)
    tasks = len({row["task_label"] for row in rows}) > 1
    header = [*(["task"] if tasks else []), "method", "budget", "state", f"{what} [95 %]"]
    header += ["resident MB (of dense)", "read MB/step", *(["ms/token"] if timed else []), "n", "n needed"]
    header += ["p"] if values is _kl else []
    cells = []
    for row in rows:
        shown, state, needed, *more = values(row)
        cells.append(
            [
                *([row["task_label"]] if tasks else []),
                row["label"] + (" (a bound)" if row["oracle"] else ""),
                row["budget_requested"] or MISSING,
                state + _remarks(row, values is _kl),
                shown,
                _bytes(row, "resident"),
                _bytes(row, "read"),
                *([number(row["decode_ms_per_token"], ".3g")] if timed else []),
                str(row["n"]),
                number(needed, ".0f") if state == UNKNOWN else "",
                *more,
            ]
        )
    return Table(title, caption, header, cells)


def _difference(row: pd.Series) -> list[Any]:
    interval = f"[{number(row['ci_low'], '+.2f')}, {number(row['ci_high'], '+.2f')}]"
    return [f"{number(row['delta'], '+.2f')} {interval}", row["state"], row["n_needed"]]


def _kl(row: pd.Series) -> list[Any]:
    interval = f"[{number(row['kl_ci_low'], '.2g')}, {number(row['kl_ci_high'], '.2g')}]"
    shown = f"{number(row['kl'], '.2g')} {interval}"
    return [shown, row["kl_state"], row["kl_n_needed"], number(row["kl_p_value"], ".2g")]


def _remarks(row: pd.Series, by_kl: bool) -> str:
    """What weakens a row's state."""
    above = row["kl_state_above" if by_kl else "state_above"]
    found = [f"but worse at {above}"] if above else []
    if row["n_failed"]:
        found.append(note(row["n_failed"], row["n"]))
    if row["tasks"] < row["all_tasks"]:
        found.append(f"{row['tasks']} of {row['all_tasks']} tasks")
    return f" ({', '.join(found)})" if found else ""


def _bytes(row: pd.Series, name: str) -> str:
    column = "bytes_resident" if name == "resident" else "bytes_read_per_step"
    share = number(row[f"{name}_share"], ".3g", 100)
    return f"{number(row[column], '.3g', 1 / MB)} ({share} %)"


def _reference(rows: pd.DataFrame) -> str:
    """Dense, which all others are compared with."""
    row = _over(rows).iloc[0]
    if pd.isna(row["dense_bytes_resident"]):
        return f"Dense is below {margins.stats.FLOOR} on every task: nothing can be told."
    return (
        f"Reference: dense, score {row['dense_score']:.2f}, {row['dense_bytes_resident'] / MB:.3g} MB resident, "
        f"{row['dense_bytes_read_per_step'] / MB:.3g} MB read per step."
    )


def _over(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["task_label"] == OVER_TASKS]


def _finding(rows: pd.DataFrame, margin: float) -> str:
    rows = _over(rows)
    if (rows["state"] == AT_FLOOR).all():
        return f"This run cannot tell: dense itself scores below {margins.stats.FLOOR} on every task."
    at = f"Within {margin:g} of dense's score ({rows['dense_score'].iloc[0]:.2f})"
    good, unknown = (_candidates(rows, "state", state) for state in (WITHIN, UNKNOWN))
    if good:
        return f"{at}, {_takes(good)}"
    if unknown:
        row = min(unknown, key=lambda row: (_or_inf(row["n_needed"]), row["bytes_resident"]))
        would = f", n = {row['n_needed']:.0f} would do" if pd.notna(row["n_needed"]) else ""
        would = would if row["n_needed"] > row["n"] else ""
        return f"{at}: this run cannot tell. {_closest(row, _difference)}{would}."
    closest = rows[~rows["oracle"]]
    if closest.empty:
        return f"{at}: no method but bounds was run."
    row = closest.loc[closest["delta"].idxmax()]
    return f"{at}: no method's mean is good enough here. {_closest(row, _difference)}."


def _kl_finding(rows: pd.DataFrame, margin: float) -> str:
    rows = _over(rows)
    at = f"With a KL from dense below {margin:g} nats"
    good, unknown = (_candidates(rows, "kl_state", state) for state in (WITHIN, UNKNOWN))
    if good:
        return f"{at}, {_takes(good)}"
    if unknown:
        row = min(unknown, key=lambda row: (_or_inf(row["kl_n_needed"]), row["bytes_resident"]))
        would = f", n = {row['kl_n_needed']:.0f} would do" if pd.notna(row["kl_n_needed"]) else ""
        return f"{at}: this run cannot tell. {_closest(row, _kl)}{would}."
    closest = rows[~rows["oracle"] & rows["kl"].notna()]
    if closest.empty:
        return f"{at}: nothing was measured."
    row = closest.loc[closest["kl"].idxmin()]
    return f"{at}: no method's mean is good enough here. {_closest(row, _kl)}."


def _closest(row: pd.Series, values: Any) -> str:
    return f"{_called(row)} comes closest: {values(row)[0]} at n = {row['n']}"


def _candidates(rows: pd.DataFrame, state: str, wanted: str) -> list[pd.Series]:
    """The smallest budget of a state of each method that can be run, the fewest bytes first."""
    found = []
    for _, group in rows[~rows["oracle"] & (rows[state] == wanted)].groupby("label", sort=True):
        found.append(_order(group).iloc[0])
    return sorted(found, key=lambda row: (row["bytes_resident"], row["bytes_read_per_step"], row["label"]))


def _takes(good: Sequence[pd.Series]) -> str:
    """The one with the fewest resident bytes, others with as many, and the one that reads least."""
    first = good[0]
    ties = [row for row in good if math.isclose(row["bytes_resident"], first["bytes_resident"])]
    needs, reads = ("need", "read") if len(ties) > 1 else ("needs", "reads")
    least = min(good, key=lambda row: row["bytes_read_per_step"])
    also = ""
    if least["bytes_read_per_step"] < 0.99 * min(row["bytes_read_per_step"] for row in ties):
        also = f"; {_called(least)} reads least, {number(least['read_share'], '.2g', 100)} %"
    return (
        f"{_listed([_called(row) for row in ties])} {needs} {number(first['resident_share'], '.2g', 100)} % of the "
        f"memory and {reads} {number(first['read_share'], '.2g', 100)} % per step{also}."
    )


def _listed(names: Sequence[str]) -> str:
    shown = [*names[:3], *([f"{len(names) - 3} more"] if len(names) > 3 else [])]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _called(row: Mapping[Any, Any] | pd.Series) -> str:
    budget = str(row["budget_requested"])
    if not budget:
        return str(row["label"])
    unit = f" of the prompt ({budget})" if budget.endswith("x") else " tokens"
    amount = f"{float(budget[:-1]):.0%}" if budget.endswith("x") else budget
    return f"{row['label']} at {amount}{unit}"


def _name(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    parts = [
        first["model"],
        first["protocol"],
        counted(int(first["length"]), "token") if first["length"] else "",
    ]
    return ", ".join(str(part) for part in parts if part)


def _or_inf(value: float) -> float:
    return math.inf if pd.isna(value) else float(value)


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
