"""Averages over the tasks of a benchmark, each by a rule that papers use and that its name tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from kvbench.report.summary import METHOD, SETTING, budget_key

# categories of LongBench's README: English and code tasks, and the Chinese ones
_ENGLISH = {
    "single": ("narrativeqa", "qasper", "multifieldqa_en"),
    "multi": ("hotpotqa", "2wikimqa", "musique"),
    "summary": ("gov_report", "qmsum", "multi_news"),
    "few-shot": ("trec", "triviaqa", "samsum"),
    "synthetic": ("passage_count", "passage_retrieval_en"),
    "code": ("lcc", "repobench-p"),
}
_CHINESE = {
    "single": ("multifieldqa_zh",),
    "multi": ("dureader",),
    "summary": ("vcsum",),
    "few-shot": ("lsht",),
    "synthetic": ("passage_retrieval_zh",),
    "code": ("lcc", "repobench-p"),
}
#: tasks of SCBench
_SCBENCH = 12


def rows(cells: pd.DataFrame) -> Iterator[list[Any]]:
    """Rows for `metrics.further`: every average whose tasks are all in the run, by method and budget, of 100.

    Args:
        cells: from `summary.prepare`.
    """
    if "task_family" not in cells:
        return
    for family, averages in _AVERAGES.items():
        part = cells[(cells["task_family"] == family) & cells["score"].notna()]
        part = part.assign(budget=part["budget_requested"].map(budget_key))
        for _, group in part.sort_values(
            ["is_dense", "label", "budget"], ascending=[False, True, True]
        ).groupby([*SETTING, *METHOD], dropna=False, sort=False):
            first = group.iloc[0]
            for name, rule, value, n in averages(group):
                yield [
                    first["model"], first["protocol"], family, 0, first["label"], first["budget_requested"] or "-",
                    f"average {name}", rule, value, n,
                ]  # fmt: skip


def _names(group: pd.DataFrame, family: str) -> pd.Series:
    return group["task"].str.removeprefix(f"{family}_")


def _longbench(group: pd.DataFrame) -> Iterator[tuple[str, str, float, int]]:
    yield from _longbench_e(group)
    if "aggregate" in group:
        # LongBench-E is another benchmark
        group = group[~group["aggregate"].map(lambda rules: isinstance(rules, dict))]
    means = (100 * group["score"]).groupby(_names(group, "longbench")).mean()
    scores: dict[str, float] = {str(name): float(value) for name, value in means.items()}
    for language, categories in (("English", _ENGLISH), ("Chinese", _CHINESE)):
        if all(name in scores for names in categories.values() for name in names):
            value = _mean([_mean([scores[name] for name in names]) for names in categories.values()])
            yield f"readme, {language}", "mean of 6 category means", value, sum(map(len, categories.values()))
    rocketkv = [name for names in _ENGLISH.values() for name in names if name != "passage_count"]
    if all(name in scores for name in rocketkv):
        yield "rocketkv", "mean of 15 tasks, without passage_count", _mean([scores[n] for n in rocketkv]), 15
    if len(scores) > 1:
        yield "leaves", f"mean of the {len(scores)} tasks", _mean(list(scores.values())), len(scores)


def _longbench_e(group: pd.DataFrame) -> Iterator[tuple[str, str, float, int]]:
    """LongBench-E's curve: per bucket of lengths the mean over tasks; a task without rows there is left out."""
    if "aggregate" not in group:
        return
    extended = group[group["aggregate"].map(lambda rules: isinstance(rules, dict))]
    if extended.empty:
        return
    words = extended["meta"].map(lambda meta: meta["words"])
    names = _names(extended, "longbench")
    bounds = [("0-4k", 0, 4000), ("4-8k", 4000, 8000), ("8k+", 8000, float("inf"))]
    for label, low, high in bounds:
        inside = (words >= low) & (words < high)
        means = (100 * extended["score"][inside]).groupby(names[inside]).mean()
        if len(means):
            rule = f"mean of the {len(means)} tasks with rows there"
            yield f"E, {label} words", rule, float(means.mean()), len(means)


def _scbench(group: pd.DataFrame) -> Iterator[tuple[str, str, float, int]]:
    """Of fixed scores, and RocketKV's: official scores, the sum of twelve tasks over eleven (its Table 4)."""
    names, turns = _names(group, "scbench"), group["meta"].map(lambda meta: meta["turn"])
    for name, chosen in (("turn 1", turns == 0), ("later turns", turns > 0)):
        means = (100 * group["score"][chosen]).groupby(names[chosen]).mean()
        if len(means) > 1:
            yield name, f"mean of the {len(means)} tasks", float(means.mean()), len(means)
    if names.nunique() == _SCBENCH:
        for name, rule, metric, over in (
            ("mean12", "mean of 12 tasks, each of its turns", "fixed", 12),
            ("rocketkv11", "official scores, sum of 12 tasks over 11", "official", 11),
        ):
            values = [
                _mean(_printed(part, turns[part.index], metric))
                for _, part in group.groupby(names, sort=False)
            ]
            yield name, rule, 100 * sum(values) / over, _SCBENCH


def _printed(part: pd.DataFrame, turns: pd.Series, metric: str) -> list[float]:
    """The numbers that SCBench prints of a task: one per turn, or of a mixed task one per turn and kind.

    Where no row has a kind at a turn, its number is 0, as officially.
    """
    scores = list(part["scores"])
    kinds = sorted({kind for row in scores for kind in row} - {"fixed", "official"})
    found = []
    for turn in sorted(set(turns)):
        at = [row for row, other in zip(scores, turns, strict=True) if other == turn]
        if not kinds:
            found.append(_mean([row[metric] for row in at]))
        for kind in kinds:
            of_kind = [row[metric] for row in at if kind in row]
            found.append(_mean(of_kind) if of_kind else 0.0)
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


_AVERAGES: Mapping[str, Callable[[pd.DataFrame], Iterator[tuple[str, str, float, int]]]] = {
    "longbench": _longbench,
    "scbench": _scbench,
}
