"""Metrics besides the score, and averages over the tasks of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from kvbench.report import averages
from kvbench.report.format import Table, number
from kvbench.report.summary import METHOD, SETTING, TASK, budget_key

_ROW = [*SETTING, *TASK, *METHOD]
COLUMNS = ["model", "protocol", "task", "length", "method", "budget", "metric", "rule", "value", "n"]


class _Value(NamedTuple):
    """A metric summed up: its name, rule, value (NaN for no sample), and number of samples."""

    name: str
    rule: str
    value: float
    n: int


def further(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per metric of tasks that have several, and per average over tasks; the columns are `COLUMNS`.

    Args:
        cells: from `summary.prepare`.
    """
    rows = [*_of_tasks(cells), *averages.rows(cells)]
    return pd.DataFrame(rows, columns=COLUMNS)


def tables(cells: pd.DataFrame) -> list[Table]:
    """The rows of `further` as tables, one per kind; none where there are no rows."""
    found = []
    frame = further(cells)
    of_averages = frame["metric"].str.startswith("average")
    for title, caption, part in (
        (
            "Averages over tasks",
            "Of 100. The rule is in the name; one whose tasks are not all there is left out. No test over tasks.",
            frame[of_averages],
        ),
        (
            "Further metrics",
            "Of the same answers. No p value: only the score of a task is compared with dense sample by sample.",
            frame[~of_averages],
        ),
    ):
        if len(part):
            header = ["task", "length", "protocol", "metric", "rule", "method", "budget", "value", "n"]
            rows = [
                [*(str(row[name]) for name in header[:-2]), number(row["value"], ".4g"), str(row["n"])]
                for _, row in part.iterrows()
            ]
            found.append(Table(title, caption, header, rows))
    return found


def _of_tasks(cells: pd.DataFrame) -> Iterator[list[Any]]:
    if "scores" not in cells:
        return
    several = cells[cells["scores"].map(lambda scores: isinstance(scores, dict)) & ~cells["idle"]]
    if several.empty:
        return
    several = several.assign(budget=several["budget_requested"].map(budget_key))
    order = [*SETTING, *TASK, "is_dense", "label", "budget"]
    for _, group in several.sort_values(order, ascending=[name != "is_dense" for name in order]).groupby(
        _ROW, dropna=False, sort=False
    ):
        first = group.iloc[0]
        for value in summed(group.to_dict("records")):
            yield [
                first["model"], first["protocol"], first["task_label"], first["length"], first["label"],
                first["budget_requested"] or "-", *value,
            ]  # fmt: skip


def summed(cells: Sequence[Mapping[str, Any]]) -> Iterator[_Value]:
    """All metrics of one method on one task, each by its rule.

    Args:
        cells: rows with `scores`, `aggregate`, `meta` and `output_ids`.
    """
    rules = cells[0].get("aggregate")
    rules = rules if isinstance(rules, dict) else {}
    names = dict.fromkeys(name for cell in cells for name in cell["scores"])
    for name in names:
        rule, _, argument = rules.get(name, "mean").partition(":")
        having = [cell for cell in cells if name in cell["scores"]]
        yield from _RULES[rule](name, argument, having)
    generated = [len(cell["output_ids"]) for cell in cells if isinstance(cell.get("output_ids"), list)]
    if generated:
        yield _Value("generated tokens", "mean", _mean(generated), len(generated))


def _plain(name: str, _: str, cells: Sequence[Mapping[str, Any]]) -> Iterator[_Value]:
    yield _Value(name, "mean", _mean([cell["scores"][name] for cell in cells]), len(cells))


def _instances(name: str, _: str, cells: Sequence[Mapping[str, Any]]) -> Iterator[_Value]:
    """The mean over all parts of all samples."""
    values = [value for cell in cells for value in cell["scores"][name]]
    yield _Value(name, "mean over parts", _mean(values), len(values))


def _buckets(name: str, argument: str, cells: Sequence[Mapping[str, Any]]) -> Iterator[_Value]:
    """A mean per bucket of a fact of the samples: `FIELD:EDGE,EDGE`, a value belongs below the first larger edge."""
    field, _, edges = argument.partition(":")
    last = ""
    bounds = [*map(float, edges.split(",")), math.inf]
    low = -math.inf
    for high in bounds:
        values = [cell["scores"][name] for cell in cells if low <= cell["meta"][field] < high]
        last = f"{field} < {high:g}" if high < math.inf else f"{field} >= {low:g}"
        yield _Value(f"{name}, {last}", "mean", _mean(values), len(values))
        low = high


def _by_value(name: str, field: str, cells: Sequence[Mapping[str, Any]]) -> Iterator[_Value]:
    """A mean over all samples, and one per value of facts of the samples, `FACT,FACT`."""
    yield from _plain(name, "", cells)
    for fact in field.split(","):
        for value in sorted({cell["meta"][fact] for cell in cells}, key=str):
            values = [cell["scores"][name] for cell in cells if cell["meta"][fact] == value]
            yield _Value(f"{name}, {fact} {value}", "mean", _mean(values), len(values))


def _exp_weighted(name: str, weights: str, cells: Sequence[Mapping[str, Any]]) -> Iterator[_Value]:
    """exp of the sum over the sum of the weights, as a perplexity from sums of negative log-likelihoods."""
    total = sum(cell["scores"][weights] for cell in cells)
    value = math.exp(min(sum(cell["scores"][name] for cell in cells) / total, 700)) if total else math.nan
    yield _Value(f"exp of {name} per {weights}", "exp(sum / sum)", value, len(cells))


def _ratio(name: str, weights: str, cells: Sequence[Mapping[str, Any]]) -> Iterator[_Value]:
    """The sum over the sum of the weights, as bits per byte."""
    total = sum(cell["scores"][weights] for cell in cells)
    value = sum(cell["scores"][name] for cell in cells) / total if total else math.nan
    yield _Value(f"{name} per {weights}", "sum / sum", value, len(cells))


def _pass_at(name: str, _: str, cells: Sequence[Mapping[str, Any]]) -> Iterator[_Value]:
    """The mean over samples, and pass@k: the chance that one of k repeats is right (Chen et al., 2021)."""
    documents: dict[Any, list[float]] = {}
    for cell in cells:
        documents.setdefault((cell["seed"], cell["meta"]["document"]), []).append(cell["scores"][name])
    repeats = min(map(len, documents.values()))
    yield _Value(
        f"{name}, avg@{repeats}", "mean", _mean([v for of in documents.values() for v in of]), len(cells)
    )
    for k in dict.fromkeys((1, repeats)):
        chances = [pass_at(k, len(of), sum(value >= 1 for value in of)) for of in documents.values()]
        yield _Value(f"{name}, pass@{k}", "mean over documents", _mean(chances), len(documents))


def pass_at(k: int, n: int, correct: int) -> float:
    """1 - C(n - correct, k) / C(n, k): chance that k of n answers, drawn without return, hold a right one."""
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


_RULES: dict[str, Callable[[str, str, Sequence[Mapping[str, Any]]], Iterator[_Value]]] = {
    "mean": _plain,
    "instances": _instances,
    "buckets": _buckets,
    "by": _by_value,
    "exp_weighted": _exp_weighted,
    "ratio": _ratio,
    "pass@k": _pass_at,
}
