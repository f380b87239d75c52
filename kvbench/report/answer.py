"""A few methods at one budget: the score on each task, and the memory that it takes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kvbench.report import stats, style
from kvbench.report.ranking import MANY, telling

_COLUMNS = 3  # panels side by side
_SHARES = {"bytes_resident_share": "memory", "bytes_read_share": "read"}


def few(rows: pd.DataFrame) -> pd.Series:
    """Mask of the scored rows; all False if there are too many methods to name each."""
    return rows["score"].notna() & (rows["label"].nunique() <= MANY)


def scores(rows: pd.DataFrame) -> style.Figure:
    """Score with its interval by method, one panel per length and task, at the budget that tells methods apart best.

    Methods without a budget are shown too; dense comes first, the others are sorted by their mean. On the right are
    their shares of dense's bytes.

    Args:
        rows: summary rows of one setting.
    """
    means = rows.groupby(["label", "budget_requested"], as_index=False)["score"].mean()
    budget = telling(means) if (means["budget_requested"] != "").any() else ""
    shown = rows[rows["budget_requested"].isin(["", budget])]
    order = shown.groupby("label")["score"].mean().sort_values(ascending=False, kind="stable").index
    dense = [label for label in order if label == "dense"]
    order = [*dense, *(label for label in order if label != "dense")]
    groups = list(shown.groupby(["length", "task_label"]))
    columns = min(_COLUMNS, len(groups))
    lines = -(-len(groups) // columns)
    figure = style.Figure(
        figsize=(2.6 * columns + 2.9, lines * (0.27 * len(order) + 0.75) + 0.5), layout="constrained"
    )
    all_axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for unused in all_axes[len(groups) :]:
        unused.remove()
    looks = style.styles(order)
    for place, (axes, ((length, task), panel)) in enumerate(zip(all_axes, groups, strict=False)):
        _panel(axes, panel, order, looks, names=place % columns == 0)
        tokens = f", {length:,} tokens" if length else ""
        axes.set_title(f"{task}{tokens}", fontsize=9)
        if place % columns == columns - 1 or place == len(groups) - 1:
            _sizes(axes, shown, order)
    budgets = f" Budget {budget}, where methods differ most." if budget else ""
    style.caption(
        figure,
        f"{style.subject(rows)}, n = {rows['n'].max()} per score.{budgets} Bars: 95 % intervals"
        f"{stats.former(rows['stats_version'])}; grey: dense's. memory, read: KV bytes resident and read per decode "
        "step, measured, % of dense.",
    )
    return figure


def _panel(
    axes: Axes, panel: pd.DataFrame, order: list[str], looks: dict[str, style.Style], names: bool
) -> None:
    for _, row in panel.iterrows():
        place, look = order.index(row["label"]), looks[row["label"]]
        axes.hlines(place, row["ci_low"], row["ci_high"], color=look.colour, linewidth=2, alpha=0.45)
        axes.plot(row["score"], place, look.marker, color=look.colour, markersize=7)
        axes.annotate(
            f"{row['score']:.2f}",
            (row["score"], place),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=style.DENSE_COLOUR,
        )
    for _, row in panel[panel["is_dense"]].iterrows():
        axes.axvspan(row["ci_low"], row["ci_high"], color=style.DENSE_COLOUR, alpha=0.07, linewidth=0)
        axes.axvline(row["score"], color=style.DENSE_COLOUR, linewidth=0.8, alpha=0.5)
    axes.set_yticks(range(len(order)), labels=order if names else [""] * len(order))
    axes.set_ylim(len(order) - 0.5, -0.8)
    axes.set_xlim(-0.07, 1.07)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"score ({panel['metric'].iloc[0]})")
    if panel["floor"].any():
        axes.text(0.5, 0.5, f"floor: dense is below {stats.FLOOR}", transform=axes.transAxes, ha="center")


def _sizes(axes: Axes, shown: pd.DataFrame, order: list[str]) -> None:
    """Shares of dense's bytes, right of the last panel of a row."""
    shares = shown.groupby("label")[list(_SHARES)].mean().reindex(order)
    for column, (name, share) in enumerate(zip(_SHARES.values(), shares.to_numpy().T, strict=True)):
        x = 1.2 + 0.22 * column
        common = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 8}
        axes.text(x, -0.75, name, color=style.GREY, **common)
        for place, value in enumerate(share):
            text = "-" if not np.isfinite(value) else f"{value:.1%}" if value < 0.0995 else f"{value:.0%}"
            axes.text(x, place, text, **common)
