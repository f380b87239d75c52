"""Figures of the cost model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from kvbench.report import style


def step(frame: pd.DataFrame) -> style.Figure:
    """Milliseconds of a decode step at the scan's own batch, one panel per device; rows of one model from `scan`."""

    def finish(axes: Axes, rows: pd.DataFrame) -> None:
        axes.set_ylim(bottom=0)
        axes.axhline(rows["weights_ms"].iloc[0], color=style.GREY, linestyle=":", linewidth=1.2)

    floor = Line2D([], [], color=style.GREY, linestyle=":", label="weights alone")
    label = f"decode step, batch {frame['batch'].iloc[0]} (ms)"
    return _by_length(frame, "step_ms", label, "Modelled lower bound, weights included.", finish, [floor])


def dollars(frame: pd.DataFrame) -> style.Figure:
    """Dollars per million tokens at the largest batch that fits, one panel per device; rows of one model."""

    def finish(axes: Axes, rows: pd.DataFrame) -> None:
        style.log_axis(axes, "y")

    note = "Modelled lower bound: decoding alone, at the largest batch that fits."
    return _by_length(frame, "usd_per_million_tokens_max", "$ per million tokens", note, finish)


def _by_length(
    frame: pd.DataFrame, column: str, label: str, note: str, finish: Callable[[Axes, pd.DataFrame], None],
    handles: Sequence[Line2D] = (),
) -> style.Figure:  # fmt: skip
    frame = frame.assign(name=(frame["method"] + " " + frame["budget"]).str.strip())
    devices = [
        (device, rows) for device, rows in frame.groupby("device", sort=False) if rows[column].notna().any()
    ]
    with mpl.rc_context(style.SETTINGS):
        looks = style.styles(frame["name"])
        figure, panels = style.panels(len(devices))
        for axes, (device, rows) in zip(panels, devices, strict=True):
            # lines often coincide: the later ones are smaller
            for place, (name, look) in enumerate(looks.items()):
                points = rows[rows["name"] == name].dropna(subset=[column]).sort_values("length")
                axes.plot(
                    points["length"], points[column], color=look.colour, marker=look.marker, linestyle=look.line,
                    linewidth=max(1.0, 2.6 - 0.4 * place), markersize=max(3.0, 8 - 0.9 * place),
                )  # fmt: skip
            tick_lengths(axes, rows["length"])
            finish(axes, rows)
            axes.set_title(str(device))
            axes.set_xlabel("prompt (tokens)")
            axes.set_ylabel(label)
        note = f"{frame['model'].iloc[0]}, bf16. {note} Equal budgets do not mean equal answers."
        style.legend(figure, [*style.method_handles(looks), *handles], note)
    return figure


def tick_lengths(axes: Axes, lengths: pd.Series) -> None:
    """A logarithmic axis that names the lengths there are, in units of 1024 where they are whole."""
    ticks = sorted(lengths.unique())
    axes.set_xscale("log")
    axes.set_xticks(ticks, labels=[f"{tick // 1024}K" if tick % 1024 == 0 else str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def check(frame: pd.DataFrame, note: str) -> style.Figure:
    """Milliseconds measured and modelled, and their ratio, against length; rows of one model from `check.check`."""
    frame = frame.assign(name=(frame["method"] + " " + frame["budget"]).str.strip())
    frame["with_fixed_ms"] = frame["modelled_ms"] + frame["fixed_ms"]
    with mpl.rc_context(style.SETTINGS):
        looks = style.styles(frame["name"])
        figure, (times, ratios) = style.panels(2, height=3.4)
        for name, points in frame.sort_values("length").groupby("name"):
            look, x = looks[str(name)], points["length"]
            common = {"color": look.colour, "linewidth": 1.2, "markersize": 5}
            times.plot(x, points["median_ms"], marker=look.marker, linestyle="-", **common)
            times.fill_between(x, points["p20_ms"], points["p80_ms"], color=look.colour, alpha=0.2, lw=0)
            times.plot(x, points["modelled_ms"], linestyle=":", **common)
            times.plot(x, points["with_fixed_ms"], linestyle="--", **common)
            ratios.plot(x, points["ratio"], marker=look.marker, linestyle=":", **common)
            ratios.plot(x, points["ratio_with_fixed"], marker=look.marker, linestyle="--", **common)
        for axes in (times, ratios):
            tick_lengths(axes, frame["length"])
            style.log_axis(axes, "y")
            axes.set_xlabel("prompt (tokens)")
        ratios.axhline(1, color=style.GREY, linewidth=1)
        times.set_ylabel("attention of one layer and step (ms)")
        ratios.set_ylabel("measured / modelled")
        handles = [
            Line2D([], [], color=style.GREY, linestyle="-", label="measured"),
            Line2D([], [], color=style.GREY, linestyle=":", label="modelled: bytes / bandwidth"),
            Line2D([], [], color=style.GREY, linestyle="--", label="modelled + fixed cost"),
        ]
        style.legend(figure, [*style.method_handles(looks), *handles], note)
    return figure
