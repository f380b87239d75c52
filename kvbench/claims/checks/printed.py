"""Arithmetic on printed numbers: whether a paper's headlines and averages follow from its own tables.

Sums and means are exact fractions of the printed decimals, so that a result does not depend on the order of its terms.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction

from kvbench.claims.catalogue import paper_table
from kvbench.claims.claim import Finding, Reading

ROUNDING = Fraction(1, 10)  # one unit of the last printed digit


def change(readings: Mapping[str, Sequence[float]]) -> Finding:
    """Relative changes in percent.

    Args:
        readings: number before and after, by name of the reading.
    """
    found = [
        Reading(name=name, value=100 * (after - before) / before, basis="printed")
        for name, (before, after) in readings.items()
    ]
    return Finding(tuple(found))


def difference(larger: float, smaller: float) -> Finding:
    """One printed number minus another."""
    return Finding((Reading(value=larger - smaller, basis="printed"),))


def throughput(seconds: float, prompt: int, new: int) -> Finding:
    """Tokens per second from a latency, for all tokens and for the new ones."""
    found = [
        Reading(name=name, value=tokens / seconds, basis="printed")
        for name, tokens in (("prompt and new tokens", prompt + new), ("new tokens", new))
    ]
    return Finding(tuple(found))


def weighted_mean(values: Sequence[float], weights: Sequence[int]) -> Finding:
    """Mean of groups of tasks: over the tasks, and over the groups."""
    over_tasks = _total(values, weights) / sum(weights)
    return Finding(
        (
            Reading(name="mean over the tasks", value=float(over_tasks), basis="printed"),
            Reading(
                name="mean over the groups of tasks",
                value=float(_mean(values)),
                basis="printed",
                beside=True,
            ),
        )
    )


def best_setting(scores: Mapping[int, Sequence[float]]) -> Finding:
    """The setting that is best in most columns of a printed table.

    Args:
        scores: score in each column, by setting.
    """
    columns = list(zip(*scores.values(), strict=True))
    wins = {
        setting: sum(score == max(column) for score, column in zip(row, columns, strict=True))
        for setting, row in scores.items()
    }
    best = max(wins, key=lambda setting: wins[setting])
    note = f"best or equal in {wins[best]} of {len(columns)} columns"
    return Finding((Reading(value=best, basis="printed"),), note)


def longbench_average() -> Finding:
    """Share of rows in RocketKV's Table 2 whose average is the mean of the tasks in Table 3, in percent."""
    table = paper_table("rocketkv_longbench")
    left_out = table["columns"].index("psg-cnt")
    shares = {"mean of the 16 tasks": 0, "passage_count left out": 0}
    for row in table["rows"]:
        fifteen = [score for n, score in enumerate(row["tasks"]) if n != left_out]
        for name, tasks in zip(shares, (row["tasks"], fifteen), strict=True):
            shares[name] += abs(_mean(tasks) - _exact(row["longbench"])) < ROUNDING
    count = len(table["rows"])
    found = [Reading(name=name, value=100 * n / count, basis="printed") for name, n in shares.items()]
    return Finding(tuple(found), f"{count} rows")


def longbench_loss(method: str, budget: int) -> Finding:
    """Loss against full KV in points: as in RocketKV's Table 2, and of the mean of the tasks in Table 3."""
    table = paper_table("rocketkv_longbench")
    full, row = (_row(table["rows"], *key) for key in (("Full-KV", None), (method, budget)))
    tasks = float(_mean(full["tasks"]) - _mean(row["tasks"]))
    return Finding(
        (
            Reading(name="as printed", value=full["longbench"] - row["longbench"], basis="printed"),
            Reading(name="mean of the 16 tasks", value=tasks, basis="printed", beside=True),
        )
    )


def longbench_worst_loss(method: str, budget: int) -> Finding:
    """Largest loss of a method against full KV at budgets of at least `budget`, in RocketKV's Table 2."""
    rows = paper_table("rocketkv_longbench")["rows"]
    full = _row(rows, "Full-KV", None)["longbench"]
    scores = [row["longbench"] for row in rows if row["method"] == method and row["budget"] >= budget]
    return Finding((Reading(value=full - min(scores), basis="printed"),), f"{len(scores)} budgets")


def longbench_wins(method: str, others: Sequence[str]) -> Finding:
    """Share of RocketKV's Table 2 (budgets x LongBench, NIAH) in which no other method is better, in percent."""
    rows = paper_table("rocketkv_longbench")["rows"]
    budgets = sorted({row["budget"] for row in rows if row["budget"]})
    lost = [
        f"{other} at {budget}: {column} {_row(rows, other, budget)[column]}"
        f" against {_row(rows, method, budget)[column]}"
        for budget, column, other in itertools.product(budgets, ("longbench", "needle"), others)
        if _row(rows, other, budget)[column] > _row(rows, method, budget)[column]
    ]
    cells = 2 * len(budgets)
    value = 100 * (cells - len(lost)) / cells
    return Finding((Reading(value=value, basis="printed"),), "; ".join(lost))


def scbench_average(method: str, budget: int | None) -> Finding:
    """An average of RocketKV's Table 4, from its groups of tasks.

    The number of tasks per group is not printed: of all ways to divide the 12 tasks, and of the divisors 11 and 12,
    exactly one combination gives every average of the table.
    """
    rows = paper_table("rocketkv_scbench")["rows"]
    sizes, divisor = _scbench_rule([(row["groups"], row["average"]) for row in rows])
    total = _total(_row(rows, method, budget)["groups"], sizes)
    return Finding(
        (
            Reading(name="mean of the 12 tasks", value=float(total / 12), basis="printed"),
            Reading(
                name=f"their sum divided by {divisor}",
                value=float(total / divisor),
                basis="printed",
                beside=True,
            ),
        ),
        f"{len(rows)} of {len(rows)} averages of the table are sums of 12 tasks divided by {divisor}",
    )


def _scbench_rule(rows: Sequence[tuple[Sequence[float], float]]) -> tuple[tuple[int, ...], int]:
    """Group sizes and divisor that give every printed average within rounding."""
    fits = [
        (sizes, divisor)
        for divisor in (11, 12)
        for sizes in itertools.product(range(1, 10), repeat=len(rows[0][0]))
        if sum(sizes) == 12
        and all(abs(_total(groups, sizes) / divisor - _exact(average)) < ROUNDING for groups, average in rows)
    ]
    assert len(fits) == 1, fits
    return fits[0]


def _exact(value: float) -> Fraction:
    """The number that a float's shortest digits spell: for a printed number, the one printed."""
    return Fraction(str(value))


def _total(values: Sequence[float], weights: Sequence[int]) -> Fraction:
    return sum((_exact(v) * w for v, w in zip(values, weights, strict=True)), Fraction())


def _mean(values: Sequence[float]) -> Fraction:
    return _total(values, [1] * len(values)) / len(values)


def _row(rows: Sequence[Mapping], method: str, budget: int | None) -> Mapping:
    return next(row for row in rows if (row["method"], row["budget"]) == (method, budget))
