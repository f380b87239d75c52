"""Figures of the cost of prompt caching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from kvbench.promptcache.tables import usd

LIFETIMES = ((300, "5 min"), (3600, "1 h"))


def costs(frame: pd.DataFrame, path: Path) -> None:
    """Cost by placement, with the range over the open points.

    Args:
        frame: rows of `tables.row`.
        path: file to write; its suffix is the format.
    """
    ordered = frame.sort_values("cost_usd", ascending=False)
    figure, axes = plt.subplots(figsize=(8, 0.38 * len(ordered) + 1.2))
    below = ordered["cost_usd"] - ordered["low_usd"]
    above = ordered["high_usd"] - ordered["cost_usd"]
    axes.barh(ordered["placement"], ordered["cost_usd"], xerr=[below, above], capsize=3, color="#7aa6c2")
    axes.set_xlabel("cost in USD; whiskers: undocumented points turned")
    _save(figure, path)


def tokens(frame: pd.DataFrame, path: Path) -> None:
    """Input tokens by how they are billed, stacked, by placement."""
    figure, axes = plt.subplots(figsize=(8, 0.38 * len(frame) + 1.2))
    left = pd.Series(0, index=frame.index)
    for column, colour in (
        ("read", "#4c9f70"),
        ("write_5m", "#f2c14e"),
        ("write_1h", "#e07a3f"),
        ("uncached", "#999"),
    ):
        axes.barh(frame["placement"], frame[column], left=left, label=column.replace("_", " "), color=colour)
        left = left + frame[column]
    axes.invert_yaxis()
    axes.set_xlabel("input tokens")
    axes.legend(fontsize=8)
    _save(figure, path)


def turns(curves: Mapping[str, Sequence[int]], path: Path) -> None:
    """Cumulative cost against the number of turns."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, curve in curves.items():
        axes.plot(range(1, len(curve) + 1), [usd(cost) for cost in curve], marker=".", label=name)
    axes.set_xlabel("turns")
    axes.set_ylabel("cumulative cost in USD")
    axes.legend(fontsize=8)
    _save(figure, path)


def gaps(seconds: Sequence[float], curves: Mapping[str, Sequence[int]], path: Path) -> None:
    """Cost against the gap between turns: the cliffs are the lifetimes."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for order, (name, curve) in enumerate(curves.items()):
        # curves often coincide: the later ones are thinner
        width = max(1.0, 6.0 - 0.8 * order)
        axes.plot(seconds, [usd(cost) for cost in curve], linewidth=width, marker=".", label=name)
    for lifetime, name in LIFETIMES:
        if seconds[0] <= lifetime <= seconds[-1]:
            axes.axvline(lifetime, color="#999", linestyle=":", linewidth=1)
            axes.annotate(name, (lifetime, axes.get_ylim()[1]), fontsize=8, va="top")
    axes.set_xscale("log")
    axes.set_xlabel("seconds between turns")
    axes.set_ylabel("cost in USD")
    axes.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
