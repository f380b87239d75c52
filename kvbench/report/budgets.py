"""Score and KL against the nominal budget: variants of a method, or methods that are told apart by it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kvbench.report import stats, style
from kvbench.report.pareto import KL_FLOOR
from kvbench.report.ranking import MANY
from kvbench.report.summary import budget_key

_SHIFT = 0.12  # largest shift in x, to keep methods of equal score apart, in steps between budgets
_VALUES = {
    "score": ("score", "ci_low", "ci_high"),
    "KL from dense (nats per token)": ("kl_to_dense", "kl_ci_low", "kl_ci_high"),
}


def several(rows: pd.DataFrame) -> pd.Series:
    """Mask of the scored rows of dense and of methods with a budget.

    All False without two budgets, or with too many methods to name each.
    """
    budgets = rows.loc[rows["score"].notna() & (rows["budget_requested"] != ""), "budget_requested"].nunique()
    wanted = rows["score"].notna() & (rows["is_dense"] | (rows["budget_requested"] != ""))
    return wanted & (budgets > 1) & (rows["label"].nunique() <= MANY)


def by_budget(rows: pd.DataFrame) -> style.Figure:
    """Score and KL by budget, one row of panels per length and task; rows of one setting.

    Dense, whose KL is 0, is a mark at the edge of the scores.
    """
    rows = rows.assign(**rows[list(_VALUES["KL from dense (nats per token)"])].clip(lower=KL_FLOOR))
    values = {name: columns for name, columns in _VALUES.items() if rows[columns[0]].notna().any()}
    groups = list(rows.groupby(["length", "task_label"]))
    figure, all_axes = style.panels(len(groups) * len(values), columns=len(values), width=4.4)
    budgets = sorted(set(rows["budget_requested"]) - {""}, key=budget_key)
    style.caption(
        figure,
        f"{style.subject(rows)}, n = {rows['n'].max()}. Bars: 95 % intervals{stats.former(rows['stats_version'])}. "
        "Grey band: dense's; its KL is 0. Equal budgets are not equal bytes: see the figures against bytes. Methods "
        "are moved sideways to be seen.",
    )
    looks = style.styles(rows["label"])
    panels = [(group, name, columns) for group in groups for name, columns in values.items()]
    for axes, (((length, task), panel), name, columns) in zip(all_axes, panels, strict=True):
        ends = _lines(axes, panel, columns, budgets, looks)
        if name == "score":
            ends += _dense(axes, panel, len(budgets))
        else:
            style.log_axis(axes, "y")
        axes.set_xticks(range(len(budgets)), labels=budgets)
        axes.set_xlim(-0.3, len(budgets) - 0.7)
        axes.set_xlabel("budget (tokens or share)")
        axes.set_ylabel(name if name != "score" else f"score ({panel['metric'].iloc[0]})")
        tokens = f", {length:,} tokens" if length else ""
        axes.set_title(f"{task}{tokens}")
        style.end_labels(axes, ends)
    return figure


def _lines(
    axes: Axes,
    panel: pd.DataFrame,
    columns: tuple[str, str, str],
    budgets: list[str],
    looks: dict[str, style.Style],
) -> list[style.End]:
    methods = [label for label in looks if label != "dense"]
    ends = []
    for shift, label in zip(np.linspace(-_SHIFT, _SHIFT, len(methods)), methods, strict=True):
        points = panel[panel["label"] == label].set_index("budget_requested").reindex(budgets)
        points = points.assign(x=np.arange(len(budgets)) + shift).dropna(subset=[columns[0]])
        look = looks[label]
        y, low, high = points[list(columns)].to_numpy(float).T
        axes.vlines(points["x"], low, high, color=look.colour, linewidth=1, alpha=0.5)
        axes.plot(
            points["x"], y, look.line, color=look.colour, marker=look.marker, linewidth=1.2, markersize=5
        )
        if len(points):
            ends.append(style.End(label, points["x"].iloc[-1], y[-1], look.colour))
    return ends


def _dense(axes: Axes, panel: pd.DataFrame, right: int) -> list[style.End]:
    axes.set_ylim(-0.04, 1.04)
    ends = []
    for _, row in panel[panel["is_dense"]].iterrows():
        axes.axhspan(row["ci_low"], row["ci_high"], color=style.DENSE_COLOUR, alpha=0.08, linewidth=0)
        axes.axhline(row["score"], color=style.DENSE_COLOUR, linewidth=1)
        ends.append(style.End("dense", right - 0.7, row["score"], style.DENSE_COLOUR))
    return ends
