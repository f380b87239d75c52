"""Two methods on the same prompts: the difference of each prompt, and its mean with an interval."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes

from kvbench.config.errors import UserError
from kvbench.config.typed import unknown
from kvbench.report import clusters, stats, style
from kvbench.report.clusters import Clusters
from kvbench.report.summary import SAMPLE, SETTING, budget_key, is_loss

_PAIRED = [*SETTING, "task", "length", *SAMPLE]
_ALL = "all budgets"
# column of the cells, label of its axis, and the interval of a mean difference
_VALUES: dict[str, tuple[str, Callable[[Clusters], tuple[float, float]]]] = {
    "score": ("score", stats.difference_interval),
    "kl_to_dense": ("KL from dense (nats per token)", stats.kl_difference_interval),
}


def pairs(cells: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """One row per prompt that both methods have, at each budget: `score` and `kl_to_dense`, of `a` minus `b`.

    A method without a budget, as dense, is paired with the other at each of its budgets.

    Args:
        cells: prepared cells.
        a: name of a method in the run.
        b: of another.

    Raises:
        UserError: a name that is not in the run, the same one twice, or no prompt that both have.
    """
    for key, name in (("a", a), ("b", b)):
        if name not in set(cells["method"]):
            raise unknown(key, name, sorted(set(cells["method"])), "method in this run")
    if a == b:
        raise UserError(f"b: {b} is a too; give another method")
    # losses without bounds have other intervals
    cells = cells[~is_loss(cells)]
    columns = [*_PAIRED, "budget_requested", "meta", *_VALUES]
    one, other = (cells.loc[cells["method"] == name, columns] for name in (a, b))
    without = [rows for rows in (one, other) if (rows["budget_requested"] == "").all()]
    on = _PAIRED if len(without) == 1 else [*_PAIRED, "budget_requested"]
    found = one.merge(other, on=on, suffixes=("", "_b"))
    if len(without) == 1:
        found["budget_requested"] += found["budget_requested_b"]
    if found.empty:
        raise UserError(f"b: {b} has no prompt and budget in common with {a}")
    for name in _VALUES:
        found[name] -= found[f"{name}_b"]
    return found


def figure(cells: pd.DataFrame, a: str, b: str) -> style.Figure:
    """Differences of scores and of KL, a row per budget.

    Args:
        cells: prepared cells of one setting.
        a: name of a method in the run.
        b: of another, which is subtracted.

    Raises:
        UserError: see `pairs`.
    """
    found = pairs(cells, a, b)
    budgets = sorted(set(found["budget_requested"]), key=budget_key)
    shown = [name for name in _VALUES if found[name].notna().any()]
    with mpl.rc_context(style.SETTINGS):
        made = style.Figure(figsize=(4.2 * len(shown), 1.3 + 0.5 * len(budgets)), layout="constrained")
        for axes, name in zip(made.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            for place, budget in enumerate(budgets):
                _row(axes, found[found["budget_requested"] == budget], name, place)
            axes.axvline(0, color="#222222", linewidth=1)
            axes.set_yticks(range(len(budgets)), [one or _ALL for one in budgets])
            axes.set_ylim(-0.5, len(budgets) - 0.3)
            axes.locator_params(axis="x", nbins=5)
            axes.set_xlabel(f"{_VALUES[name][0]}:\n{a} minus {b}")
        made.axes[0].set_ylabel("budget")
        made.axes[0].legend(frameon=False, fontsize=7, loc="best")
    made.note = style.subject(cells)
    made.heading = f"{a} minus {b}, prompt by prompt, and the mean with its 95 % interval."
    return made


def _row(axes: Axes, rows: pd.DataFrame, name: str, place: int) -> None:
    """The differences of one budget: a dot per prompt, above the mean and its interval."""
    rows = rows[rows[name].notna()]
    found = Clusters(rows[name], clusters.names(rows))
    low, high = _VALUES[name][1](found)
    first = place == 0
    above = [place + 0.17 + 0.03 * (number % 5) for number in range(len(found))]
    axes.plot(found.values, above, "o", color="#56B4E9", markersize=3, label="a prompt" if first else None)
    axes.plot([low, high], [place, place], color="#0072B2", label="mean, 95 % interval" if first else None)
    axes.plot(found.mean, place, "D", color="#0072B2", markersize=5)
