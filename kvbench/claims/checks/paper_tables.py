"""RocketKV's Tables 2 to 4 against its headlines and its averages."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

from kvbench.claims.catalogue import paper_table
from kvbench.claims.claim import Finding, Reading
from kvbench.claims.exact import exact, mean, total

ROUNDING = Fraction(1, 10)  # one unit of the last printed digit


def longbench_average(method: str, budget: int | None) -> Finding:
    """An average of RocketKV's Table 2 from the tasks of Table 3, and in how many rows each rule gives the average."""
    table = paper_table("rocketkv_longbench")
    left_out = table["columns"].index("psg-cnt")

    def rules(row: Mapping) -> tuple[Fraction, Fraction]:
        fifteen = [score for n, score in enumerate(row["tasks"]) if n != left_out]
        return mean(row["tasks"]), mean(fifteen)

    rows = table["rows"]
    all_tasks, without = rules(_row(rows, method, budget))
    counts = [
        sum(abs(rules(row)[rule] - exact(row["longbench"])) < ROUNDING for row in rows) for rule in (0, 1)
    ]
    return Finding(
        (
            Reading(name="mean of the 16 tasks", value=float(all_tasks), basis="printed"),
            Reading(name="passage_count left out", value=float(without), basis="printed", beside=True),
        ),
        f"{counts[1]} of {len(rows)} rows are the mean of 15 tasks, {counts[0]} that of 16",
    )


def longbench_loss(method: str, budget: int) -> Finding:
    """Loss against full KV in points: as in RocketKV's Table 2, and of the mean of the tasks in Table 3."""
    table = paper_table("rocketkv_longbench")
    full, row = (_row(table["rows"], *key) for key in (("Full-KV", None), (method, budget)))
    tasks = float(mean(full["tasks"]) - mean(row["tasks"]))
    printed = float(exact(full["longbench"]) - exact(row["longbench"]))
    return Finding(
        (
            Reading(name="as printed", value=printed, basis="printed"),
            Reading(name="mean of the 16 tasks", value=tasks, basis="printed", beside=True),
        )
    )


def longbench_best(
    method: str,
    others: Sequence[str],
    columns: Sequence[Literal["longbench", "needle"]],
    besides: Sequence[str] = (),
) -> Finding:
    """Whether no other method is better at any budget of RocketKV's Table 2: 1 or 0.

    Args:
        method: the method said to be best.
        others: the methods that it is compared with.
        columns: scores to compare.
        besides: methods named in the note only.
    """
    rows = paper_table("rocketkv_longbench")["rows"]
    budgets = sorted({row["budget"] for row in rows if row["budget"]})

    def better(names: Sequence[str]) -> list[str]:
        return [
            f"{other} at {budget}: {column} {_row(rows, other, budget)[column]}"
            f" against {_row(rows, method, budget)[column]}"
            for budget, column, other in itertools.product(budgets, columns, names)
            if _row(rows, other, budget)[column] > _row(rows, method, budget)[column]
        ]

    lost, besides_lost = better(others), better(besides)
    name = f"another is better in {len(lost)} of {len(budgets) * len(columns)} cells"
    note = "; ".join(lost) + (f"; besides {'; '.join(besides_lost)}" if besides_lost else "")
    return Finding((Reading(name=name, value=float(not lost), basis="printed"),), note)


def scbench_average(method: str, budget: int | None) -> Finding:
    """An average of RocketKV's Table 4, from its groups of tasks.

    The number of tasks per group is not printed: of all ways to divide the 12 tasks, and of the divisors 11 and 12,
    exactly one combination gives every average of the table.
    """
    rows = paper_table("rocketkv_scbench")["rows"]
    sizes, divisor = _scbench_rule([(row["groups"], row["average"]) for row in rows])
    tasks = total(_row(rows, method, budget)["groups"], sizes)
    return Finding(
        (
            Reading(name="mean of the 12 tasks", value=float(tasks / 12), basis="printed"),
            Reading(
                name=f"their sum divided by {divisor}",
                value=float(tasks / divisor),
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
        and all(abs(total(groups, sizes) / divisor - exact(average)) < ROUNDING for groups, average in rows)
    ]
    assert len(fits) == 1, fits
    return fits[0]


def _row(rows: Sequence[Mapping], method: str, budget: int | None) -> Mapping:
    return next(row for row in rows if (row["method"], row["budget"]) == (method, budget))
