"""Figures of the modelled cost of prompt caching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kvbench.claude.tables import AS_BILLED, usd
from kvbench.config.files import write
from kvbench.report import style

LIFETIMES = ((300, "5 min"), (3600, "1 h"))
BILLED = (
    ("read", style.COLOURS[2]),
    ("write_5m", style.COLOURS[4]),
    ("write_1h", style.COLOURS[1]),
    ("uncached", "#999999"),
)
MILLION = 1e6


@mpl.rc_context(style.SETTINGS)
def costs(frame: pd.DataFrame, path: Path) -> None:
    """Cost by placement in the order of the table, with the range over the open points.

    Args:
        frame: rows of `tables.cost_row`; a column `layout` gives each layout its own colour.
        path: output file; its suffix selects the format.
    """
    groups = frame["layout"] if "layout" in frame else pd.Series("", index=frame.index)
    colours = dict(zip(dict.fromkeys(groups), style.COLOURS, strict=False))
    figure, axes = _bars(frame)
    below = frame["cost_usd"] - frame["low_usd"]
    above = frame["high_usd"] - frame["cost_usd"]
    axes.barh(
        frame["placement"],
        frame["cost_usd"],
        xerr=[below, above],
        capsize=3,
        color=[colours[group] for group in groups],
        error_kw={"linewidth": 1},
    )
    for place, (cost, high) in enumerate(zip(frame["cost_usd"], frame["high_usd"], strict=True)):
        axes.annotate(f"{cost:.2f}", (high, place), xytext=(5, 0), textcoords="offset points", va="center")
    axes.margins(x=0.12)
    billed = " (as_billed: paid)" if AS_BILLED in set(frame["placement"]) else ""
    figure.note = f"modelled cost{billed}, USD; whiskers: undocumented points turned the other way"
    axes.set_xlabel(figure.note)
    _save(figure, path, "Modelled cost of the recorded requests by placement of the cache breakpoints.")


@mpl.rc_context(style.SETTINGS)
def tokens(frame: pd.DataFrame, path: Path) -> None:
    """Stacked input tokens by billing class, by placement."""
    figure, axes = _bars(frame)
    left = pd.Series(0.0, index=frame.index)
    for column, colour in BILLED:
        label = column.replace("_", " ")
        axes.barh(frame["placement"], frame[column] / MILLION, left=left, label=label, color=colour)
        left = left + frame[column] / MILLION
    axes.margins(x=0.03)
    figure.note = "input tokens, millions; modelled from documented rules"
    axes.set_xlabel(figure.note)
    figure.legend(loc="outside upper center", ncols=len(BILLED), frameon=False)
    _save(figure, path, "Input tokens by billing class, by placement.")


@mpl.rc_context(style.SETTINGS)
def turns(curves: Mapping[str, Sequence[int]], path: Path) -> None:
    """Cumulative cost over the number of turns."""
    figure, axes = style.panels(1)
    for name, look, curve in _looks(curves):
        steps = range(1, len(curve) + 1)
        axes[0].plot(
            steps, [usd(cost) for cost in curve], look.line, color=look.colour, marker=look.marker, label=name
        )
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_xlabel("turns")
    axes[0].set_ylabel("modelled cost so far, USD")
    _legend(figure, axes[0], "Placements in one line cost the same at every turn.")
    _save(figure, path, "Modelled cost by number of turns, by placement.")


@mpl.rc_context(style.SETTINGS)
def gaps(seconds: Sequence[float], curves: Mapping[str, Sequence[int]], path: Path) -> None:
    """Cost over the gap between turns; the cliffs are at the TTLs."""
    figure, axes = style.panels(1)
    for name, look, curve in _looks(curves):
        axes[0].plot(seconds, [usd(cost) for cost in curve], look.line, color=look.colour, label=name)
    for lifetime, name in LIFETIMES:
        if seconds[0] <= lifetime <= seconds[-1]:
            axes[0].axvline(lifetime, color=style.GREY, linestyle=":", linewidth=1)
            axes[0].annotate(name, (lifetime, 0.02), xycoords=("data", "axes fraction"), ha="right")
    style.log_axis(axes[0], "x")
    axes[0].set_ylim(bottom=0)
    axes[0].set_xlabel("seconds between turns")
    axes[0].set_ylabel("modelled cost, USD")
    _legend(figure, axes[0], "Placements in one line cost the same at every gap.")
    _save(figure, path, "Modelled cost by the time between turns, by placement.")


@mpl.rc_context(style.SETTINGS)
def bill_by_day(frame: pd.DataFrame, path: Path) -> None:
    """What was paid on each day (UTC) by billing class, and what the same calls cost without caching.

    Args:
        frame: rows of `usage.tables.days`.
        path: output file; its suffix selects the format.
    """
    figure, axes = style.panels(1)
    bottom = pd.Series(0.0, index=frame.index)
    days = frame["day"].astype(str)
    for column, colour in (*BILLED, ("output", style.COLOURS[0])):
        axes[0].bar(days, frame[column], bottom=bottom, label=column.replace("_", " "), color=colour)
        bottom = bottom + frame[column]
    axes[0].plot(
        days,
        frame["without_caching"],
        linestyle="none",
        marker="_",
        markersize=9,
        color=style.GREY,
        label="without caching",
    )
    axes[0].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes[0].set_xlabel("day, UTC")
    axes[0].set_ylabel("USD")
    axes[0].tick_params(axis="x", rotation=30)
    handles, _ = axes[0].get_legend_handles_labels()
    style.legend(
        figure, handles, "Paid: from the usage in the files. Without caching: the same calls, modelled."
    )
    _save(figure, path, "Dollars paid on each day by billing class, and without caching.")


def _bars(frame: pd.DataFrame) -> tuple[style.Figure, Axes]:
    figure = style.Figure(figsize=(7.2, 0.27 * len(frame) + 1.1), layout="constrained")
    axes = figure.subplots()
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(y=0.02)
    return figure, axes


def _looks(curves: Mapping[str, Sequence[int]]) -> list[tuple[str, style.Style, Sequence[int]]]:
    """Curves with their style; identical curves are drawn once, labelled with all their names."""
    same: dict[tuple[int, ...], list[str]] = {}
    for name, curve in curves.items():
        same.setdefault(tuple(curve), []).append(name)
    names = {" = ".join(found): curve for curve, found in same.items()}
    # no caching is the baseline here, as dense is elsewhere
    looks = style.styles("dense" if name == "none" else name for name in names)
    return [(name, looks["dense" if name == "none" else name], curve) for name, curve in names.items()]


def _legend(figure: style.Figure, axes: Axes, note: str) -> None:
    handles, _ = axes.get_legend_handles_labels()
    style.legend(figure, handles, note)


def _save(figure: style.Figure, path: Path, heading: str) -> None:
    figure.heading = heading
    write(path, style.render(figure, path.suffix[1:]))
