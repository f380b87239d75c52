"""Score and KL against measured bytes."""

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kvbench.report import stats, style
from kvbench.report.format import MB

BYTES = {
    "bytes_resident": "KV bytes resident after compression (MB)",
    "bytes_read_per_step": "KV bytes read per decode step (MB)",
    "held_bytes_mean": "KV bytes held while decoding, mean (MB)",
}
KL_FLOOR = 1e-6  # smaller values are rounding errors
# relative shift in x per method, to keep methods of equal bytes apart, and its maximum
_SHIFT = 0.005
_MAX_SHIFT = 0.04
_FAR = 2  # times the bytes of the largest method, from which dense is a mark at the edge
_CROWD = 12  # maximum number of methods in one panel
_EVICTIONS, _SELECTIONS, _FORMATS = _FAMILIES = "evictions", "selections", "formats"


def score(rows: pd.DataFrame, bytes_column: str) -> style.Figure:
    """Score against bytes, one panel per length and task; rows of one setting."""
    columns = ["score", "ci_low", "ci_high"]
    return _draw(rows, bytes_column, columns, _score_axes, "Grey band: dense's interval.")


def kl(rows: pd.DataFrame, bytes_column: str) -> style.Figure:
    """KL from dense against bytes, one panel per length and task; rows of one setting."""
    columns = ["kl_to_dense", "kl_ci_low", "kl_ci_high"]
    clipped = rows.assign(**rows[columns].clip(lower=KL_FLOOR))
    return _draw(
        clipped,
        bytes_column,
        columns,
        _kl_axes,
        "Dense's bytes are a line, or a note where it is far away; its KL is 0.",
    )


def _draw(
    rows: pd.DataFrame,
    bytes_column: str,
    columns: list[str],
    draw_dense: Callable[[Axes, pd.DataFrame, str], list[style.End]],
    dense_note: str,
) -> style.Figure:
    """The figure of a value and its bounds, `columns`.

    `draw_dense` adds a panel's y axis and dense, and returns dense's name; `dense_note` is for the caption.
    """
    # a native cache that covers the prompt is dense
    rows = rows[rows["is_dense"] | ~rows["budget_covers_prompt"] | (rows["format"] != "native")]
    groups = list(rows.groupby(["length", "task_label"]))
    families = _families(rows)
    kinds = sorted(set(families.values()), key=["", *_FAMILIES].index) or [""]
    figure, all_axes = style.panels(
        len(groups) * len(kinds), columns=len(kinds) if len(kinds) > 1 else style.COLUMNS, width=4.5
    )
    looks = style.styles(rows["label"])
    methods = [label for label in looks if label != "dense"]
    style.caption(figure, _note(rows, len(methods), len(kinds) > 1, dense_note))
    shift = _shift(len(methods))
    for axes, (((length, task), panel), kind) in zip(all_axes, itertools.product(groups, kinds), strict=True):
        ends = []
        for place, label in zip(np.linspace(-1, 1, len(methods)), methods, strict=True):
            points, look = panel[panel["label"] == label].sort_values(bytes_column), looks[label]
            x = points[bytes_column] / MB * (1 + shift) ** place
            y, low, high = points[columns].to_numpy().T
            if families[label] != kind:
                axes.plot(x, y, color=style.FAINT, linewidth=1, marker=".", markersize=3, zorder=1)
                continue
            axes.plot(x, y, look.line, color=look.colour, marker=look.marker, linewidth=1.2, markersize=5)
            axes.vlines(x, low, high, color=look.colour, linewidth=1, alpha=0.5)
            if len(points):
                ends.append(style.End(label, x.iloc[-1], y[-1], look.colour))
        ends += draw_dense(axes, panel, bytes_column)
        # a fixed position above the upper ticks: automatic placement takes half of the drawing time
        tokens = f", {length} tokens" if length else ""
        what = f"{kind}\n" if kind else ""
        axes.set_title(f"{what}{task}{tokens}, n = {panel['n'].max()}", y=1, pad=20)
        _bytes_axis(axes, panel, bytes_column)
        style.end_labels(axes, ends)
    return figure


def _shift(methods: int) -> float:
    return min(_MAX_SHIFT, _SHIFT * methods)


def _note(rows: pd.DataFrame, methods: int, by_family: bool, dense_note: str) -> str:
    note = (
        f"{style.subject(rows)}. Bars: 95 % intervals{stats.former(rows['stats_version'])}. {dense_note} Methods are "
        f"moved sideways by at most {100 * _shift(methods):g} % to be seen. Budgets that cover the prompt are not "
        "drawn. Above: % of dense."
    )
    if by_family:
        note += " Selections: also behind evictions. Faint: the methods of the other panels."
    return note


def _families(rows: pd.DataFrame) -> dict[str, str]:
    """The panel of each method by label; one panel for all if there are few."""
    rows = rows[~rows["is_dense"]].drop_duplicates("label")
    evicts, selects = rows["eviction"] != "none", rows["selection"] != "all"
    kinds = np.select([selects, evicts], [_SELECTIONS, _EVICTIONS], _FORMATS)
    one = len(rows) <= _CROWD or len(set(kinds)) == 1
    return {label: "" if one else kind for label, kind in zip(rows["label"], kinds, strict=True)}


def _score_axes(axes: Axes, panel: pd.DataFrame, bytes_column: str) -> list[style.End]:
    ends = []
    axes.set_ylim(-0.04, 1.04)
    axes.set_ylabel(f"score ({panel['metric'].iloc[0]})")
    for _, row in panel[panel["is_dense"]].iterrows():
        axes.axhspan(row["ci_low"], row["ci_high"], color=style.DENSE_COLOUR, alpha=0.08, linewidth=0)
        axes.axhline(row["score"], color=style.DENSE_COLOUR, linewidth=1)
        axes.plot(row[bytes_column] / MB, row["score"], "*", color=style.DENSE_COLOUR, markersize=9, zorder=5)
        ends.append(style.End("dense", row[bytes_column] / MB, row["score"], style.DENSE_COLOUR))
    if panel["floor"].any():
        axes.text(0.5, 0.55, f"floor: dense is below {stats.FLOOR}", transform=axes.transAxes, ha="center")
    return ends


def _kl_axes(axes: Axes, panel: pd.DataFrame, bytes_column: str) -> list[style.End]:
    style.log_axis(axes, "y")
    axes.set_ylabel("KL from dense (nats per token)")
    for _, row in panel[panel["is_dense"]].iterrows():
        _edge(axes, row[bytes_column] / MB, panel.loc[~panel["is_dense"], bytes_column].max() / MB)
    if (panel.loc[~panel["is_dense"], "kl_to_dense"] == KL_FLOOR).any():
        axes.axhline(KL_FLOOR, color=style.GREY, linewidth=0.8, linestyle=":")
        where = {"xycoords": ("axes fraction", "data"), "va": "bottom"}
        axes.annotate("at or below", (0.02, KL_FLOOR), fontsize=8, **where)
    return []


def _edge(axes: Axes, dense: float, largest: float) -> None:
    """Dense's bytes: a line, or a mark at the edge where the line would press the methods together."""
    if dense > _FAR * largest:
        # few bytes with a low KL: this corner is empty
        axes.text(
            0.01,
            0.02,
            f"dense: {dense:,.3g} MB, KL 0 \N{RIGHTWARDS ARROW}",
            transform=axes.transAxes,
            fontsize=7.5,
        )
        return
    axes.axvline(dense, color=style.DENSE_COLOUR, linewidth=1)
    axes.text(
        dense, 0.02, "dense", transform=axes.get_xaxis_transform(), rotation=90, ha="right", fontsize=7.5
    )


def _bytes_axis(axes: Axes, panel: pd.DataFrame, bytes_column: str) -> None:
    style.log_axis(axes, "x")
    axes.set_xlabel(BYTES[bytes_column])
    if panel["is_dense"].any():
        percent = panel.loc[panel["is_dense"], bytes_column].iloc[0] / MB / 100
        top = axes.secondary_xaxis("top", functions=(lambda x: x / percent, lambda x: x * percent))
        style.log_axis(top, "x", "%g%%")
