"""Many methods on many tasks: a map of scores at one budget, and the Pareto front over all budgets."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kvbench.report import style
from kvbench.report.summary import budget_key

MANY = 12  # methods from which on curves cannot be told apart
_SIZES = {"bytes_resident_share": "KV resident", "bytes_read_share": "KV read per step"}


def many(rows: pd.DataFrame) -> pd.Series:
    """Mask of the scored rows; all False unless there are many methods on several tasks or lengths."""
    scored = rows["score"].notna()
    places = rows[["task_label", "length"]].drop_duplicates()
    return scored & (rows["label"].nunique() > MANY) & (len(places) > 1)


def methods(rows: pd.DataFrame) -> style.Figure:
    """Scores by method and task at the budget that tells methods apart best, and mean scores against bytes.

    Methods without a budget are on the map too. A mean is over tasks and lengths; only methods that have all of them
    are on the right.

    Args:
        rows: summary rows of one setting.
    """
    rows = rows.assign(place=rows["task_label"] + "\n" + rows["length"].map("{:,}".format))
    places = list(dict.fromkeys(rows.sort_values(["length", "task_label"])["place"]))
    means = _means(rows, len(places))
    budget = telling(means)
    shown = rows[rows["budget_requested"].isin(["", budget])]
    grid = shown.pivot_table(index="label", columns="place", values="score").reindex(columns=places)
    order = grid.mean(axis=1).sort_values(ascending=False, kind="stable").index
    order = ["dense", *(label for label in order if label != "dense")]
    width = 1.15 * len(places) + 2.2
    height = 0.25 * len(order) + 1.5
    figure = style.Figure(figsize=(width + 2 * 4.2, height), layout="constrained")
    ratios = [width, *[4.2] * len(_SIZES)]
    left, *others = figure.subplots(1, 1 + len(_SIZES), width_ratios=ratios)
    _map(left, grid.loc[order], budget)
    for axes, (column, name) in zip(others, _SIZES.items(), strict=True):
        _front(axes, means, column, name)
    note = (
        f"{style.subject(rows)}, n = {rows['n'].max()} per score. Left: budget {budget}, where methods differ most, "
        "sorted by mean. Right: mean over the columns, every budget; line: no other method, oracles apart, has a "
        "higher mean with fewer bytes."
    )
    style.caption(figure, note)
    return figure


def _means(rows: pd.DataFrame, places: int) -> pd.DataFrame:
    """Mean score and shares of bytes by method and budget, where all places are there."""
    values = ["score", *_SIZES]
    groups = rows.groupby(["label", "budget_requested", "is_dense"], dropna=False)
    means = groups[values].mean().join(groups.size().rename("places")).reset_index()
    return means[means["places"] == places]


def telling(means: pd.DataFrame) -> str:
    """The budget at which mean scores spread most; of equal ones the smallest."""
    spread = means[means["budget_requested"] != ""].groupby("budget_requested")["score"].std().fillna(0)
    budgets = sorted(spread.index, key=budget_key)
    return max(budgets, key=lambda budget: spread[budget])


def _map(axes: Axes, grid: pd.DataFrame, budget: str) -> None:
    axes.imshow(grid, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for y, x in itertools.product(range(len(grid)), range(len(grid.columns))):
        score = grid.iloc[y, x]
        if np.isfinite(score):
            ink = "black" if score > 0.55 else "white"
            axes.text(x, y, f"{score:.2f}", ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_xticks(range(len(grid.columns)), labels=grid.columns, fontsize=7.5)
    axes.set_yticks(range(len(grid)), labels=grid.index)
    axes.axhline(0.5, color="white", linewidth=2)
    axes.grid(visible=False)
    axes.set_title(f"score at budget {budget}")


def _front(axes: Axes, means: pd.DataFrame, column: str, name: str) -> None:
    """Mean scores against a share of dense's bytes, with the names of the methods on the front."""
    looks = style.styles(means["label"])
    for label, points in means[~means["is_dense"]].groupby("label"):
        look = looks[str(label)]
        axes.plot(
            100 * points[column], points["score"], look.marker, color=look.colour, markersize=5, alpha=0.9
        )
    dense = means.loc[means["is_dense"], "score"]
    if len(dense):
        axes.axhline(dense.iloc[0], color=style.DENSE_COLOUR, linewidth=1)
        axes.annotate(
            "dense",
            (0.01, dense.iloc[0]),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            va="bottom",
        )
    real = means[~means["is_dense"] & ~means["label"].str.contains("oracle")]
    best, front = -np.inf, []
    for _, row in real.sort_values([column, "score"], ascending=[True, False]).iterrows():
        if row["score"] > best:
            best = row["score"]
            front.append(row)
    line = pd.DataFrame(front)
    axes.step(100 * line[column], line["score"], where="post", color=style.GREY, linewidth=1, zorder=1)
    last = None
    for row in front:
        if row["label"] != last and row["score"] > 0:
            place = (100 * row[column], row["score"])
            axes.annotate(
                row["label"],
                place,
                (4, -9),
                textcoords="offset points",
                fontsize=7.5,
                color=looks[row["label"]].colour,
            )
            last = row["label"]
    style.log_axis(axes, "x", "%g%%")
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel(f"{name}, % of dense")
    axes.set_ylabel("mean score")
