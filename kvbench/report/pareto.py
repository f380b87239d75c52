"""Score and KL against measured bytes: what a smaller cache costs."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kvbench import stats
from kvbench.report import style
from kvbench.report.tables import MB

BYTES = {
    "bytes_resident": "KV bytes resident after compression (MB)",
    "bytes_read_per_step": "KV bytes read per decode step (MB)",
}
KL_SHOWN = 1e-6  # below is rounding
_SHIFT = 0.04  # methods that keep equally much would hide each other


def score(rows: pd.DataFrame, bytes_column: str) -> style.Figure:
    """Score against bytes, one panel per length and task; rows of one setting."""
    return _draw(rows, bytes_column, "score")


def kl(rows: pd.DataFrame, bytes_column: str) -> style.Figure:
    """KL from dense against bytes, one panel per length and task; rows of one setting."""
    return _draw(rows, bytes_column, "kl")


def _draw(rows: pd.DataFrame, bytes_column: str, what: str) -> style.Figure:
    # a native cache that covers the prompt is dense by definition
    rows = rows[rows["is_dense"] | ~rows["budget_covers_prompt"] | (rows["format"] != "native")]
    groups = list(rows.groupby(["length", "task_label"]))
    figure, all_axes = style.panels(len(groups))
    looks = style.styles(rows["label"])
    methods = [label for label in looks if label != "dense"]
    for axes, ((length, task), panel) in zip(all_axes, groups, strict=True):
        dense = panel[panel["is_dense"]]
        for place, label in zip(np.linspace(-1, 1, len(methods)), methods, strict=True):
            points = panel[panel["label"] == label].sort_values(bytes_column)
            _points(axes, points, bytes_column, what, looks[label], (1 + _SHIFT) ** place)
        (_score_axes if what == "score" else _kl_axes)(axes, panel, dense, bytes_column)
        # a fixed place above the upper ticks; finding one takes half of matplotlib's time
        axes.set_title(f"{task}, {length} tokens, n = {panel['n'].max()}", y=1, pad=20)
        _bytes_axis(axes, dense, bytes_column)
    note = (
        f"{style.subject(rows)}. Bars: 95 % intervals. Methods are moved sideways by at most "
        f"{100 * _SHIFT:.0f} % to be seen. Budgets that cover the prompt are not drawn. Above: % of dense."
    )
    style.legend(figure, style.method_handles(looks), note)
    return figure


def _points(
    axes: Axes, points: pd.DataFrame, bytes_column: str, what: str, look: style.Style, shift: float
) -> None:
    columns = (
        ["score", "ci_low", "ci_high"] if what == "score" else ["kl_to_dense", "kl_ci_low", "kl_ci_high"]
    )
    x = points[bytes_column] / MB * shift
    y, low, high = points[columns].to_numpy().T
    if what == "kl":
        y, low, high = np.maximum([y, low, high], KL_SHOWN)
    axes.plot(x, y, color=look.colour, marker=look.marker, linestyle=look.line, linewidth=1.2, markersize=5)
    axes.vlines(x, low, high, color=look.colour, linewidth=1, alpha=0.5)


def _score_axes(axes: Axes, panel: pd.DataFrame, dense: pd.DataFrame, bytes_column: str) -> None:
    axes.set_ylim(-0.04, 1.04)
    axes.set_ylabel(f"score ({panel['metric'].iloc[0]})")
    for _, row in dense.iterrows():
        axes.axhspan(row["ci_low"], row["ci_high"], color=style.DENSE_COLOUR, alpha=0.08, linewidth=0)
        axes.axhline(row["score"], color=style.DENSE_COLOUR, linewidth=1)
        axes.plot(row[bytes_column] / MB, row["score"], "*", color=style.DENSE_COLOUR, markersize=9, zorder=5)
    if panel["floor"].any():
        axes.text(0.5, 0.55, f"floor: dense is below {stats.FLOOR}", transform=axes.transAxes, ha="center")


def _kl_axes(axes: Axes, panel: pd.DataFrame, dense: pd.DataFrame, bytes_column: str) -> None:
    style.log_axis(axes, "y")
    axes.set_ylabel("KL from dense (nats per token)")
    for _, row in dense.iterrows():
        axes.axvline(row[bytes_column] / MB, color=style.DENSE_COLOUR, linewidth=1)
    if (panel.loc[~panel["is_dense"], "kl_to_dense"] < KL_SHOWN).any():
        axes.axhline(KL_SHOWN, color=style.GREY, linewidth=0.8, linestyle=":")
        axes.annotate(
            "at or below", (0.02, KL_SHOWN), xycoords=("axes fraction", "data"), fontsize=8, va="bottom"
        )


def _bytes_axis(axes: Axes, dense: pd.DataFrame, bytes_column: str) -> None:
    style.log_axis(axes, "x")
    axes.set_xlabel(BYTES[bytes_column])
    if len(dense):
        percent = dense[bytes_column].iloc[0] / MB / 100
        top = axes.secondary_xaxis("top", functions=(lambda x: x / percent, lambda x: x * percent))
        style.log_axis(top, "x", "%g%%")
