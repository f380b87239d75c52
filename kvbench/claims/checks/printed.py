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
        readings: per reading the number before and the number after.
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
    """Tokens per second from a latency: of all tokens, or of the new ones."""
    found = [
        Reading(name=name, value=tokens / seconds, basis="printed")
        for name, tokens in (("prompt and new tokens", prompt + new), ("new tokens", new))
    ]
    return Finding(tuple(found))


def weighted_mean(values: Sequence[float], weights: Sequence[int]) -> Finding:
    """Mean of groups of tasks: over the groups, or over the tasks."""
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
    """The setting that is best in most columns of a printed table, and in how many it is.

    Args:
        scores: per setting a score in each column.
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
    """Rows of RocketKV's Table 2 whose average is the mean of the tasks in Table 3, in percent of the rows."""
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
    """Points that the mean of the tasks in RocketKV's Table 3 loses against full KV; Table 2's is beside it."""
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
    """The most that a method loses against full KV at any budget from `budget` on, in RocketKV's Table 2."""
    rows = paper_table("rocketkv_longbench")["rows"]
    full = _row(rows, "Full-KV", None)["longbench"]
    own = [row["longbench"] for row in rows if row["method"] == method and row["budget"] >= budget]
    return Finding((Reading(value=full - min(own), basis="printed"),), f"{len(own)} budgets")


def longbench_wins(method: str, others: Sequence[str]) -> Finding:
    """Share of RocketKV's Table 2 (budgets x LongBench, NIAH), in percent, where no other method is better."""
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
    """An average of RocketKV's Table 4 from its groups of tasks.

    How many of the 12 tasks are in each group is not printed: of all ways to divide them, and of the divisors 11 and
    12, exactly one gives every average of the table.
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
    """Sizes of the groups and the divisor that give every printed average within rounding."""
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
