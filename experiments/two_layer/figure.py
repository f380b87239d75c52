"""Dollars per session of both layers over the sessions per day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from kvbench.experiments.two_layer.breakeven import break_even, mixed_per_day
from kvbench.experiments.two_layer.compare import Comparison
from kvbench.experiments.two_layer.config import TwoLayerConfig, load_text
from kvbench.report import style

if TYPE_CHECKING:
    from kvbench.experiments.two_layer.hosted import ServingCost

HEADING = "Dollars per session at the API and on rented devices, by sessions per day."
POINTS = 600
ALIKE = 0.1  # relative difference of capacities that share a line; a few draws do not tell less apart


@mpl.rc_context(style.SETTINGS)
def per_session(found: Comparison, cfg: TwoLayerConfig) -> style.Figure:
    """API with and without placements, every way to serve, and the best of both; log axes."""
    groups = _alike([way for way in found.served if way.fleet.capacity])
    max_capacity = max([group[-1].fleet.capacity for group in groups], default=1000)
    sessions = np.unique(np.geomspace(1, 4 * max_capacity, POINTS).round())
    figure, (axes,) = style.panels(1, height=3.6)
    handles = _api(axes, found, sessions)
    looks = style.styles([group[0].name for group in groups])
    for group in groups:
        costs = [group[0].fleet.per_day(count) / count for count in sessions]
        look, label = looks[group[0].name], ", ".join(way.name for way in group)
        handles += axes.plot(sessions, costs, look.line, color=look.colour, linewidth=1.6, label=label)
    if groups:
        handles += _both(axes, found, sessions)
    for which in ("x", "y"):
        style.log_axis(axes, which)
    axes.set_xlabel("sessions per day")
    axes.set_ylabel("USD per session")
    note = (
        f"Modelled unless the table says measured. {found.title}, {load_text(cfg)}, one provider's rent. Ways to serve "
        f"whose capacities differ by {ALIKE:.0%} at most share a line, the dearest is drawn. Quality of the "
        "answers is not in it."
    )
    style.legend(figure, handles, note)
    return figure


def _alike(served: Sequence[ServingCost]) -> list[list[ServingCost]]:
    """Ways to serve by capacity; those that would look like one line are grouped."""
    groups: list[list[ServingCost]] = []
    for way in sorted(served, key=lambda way: way.fleet.capacity):
        if groups and way.fleet.capacity <= (1 + ALIKE) * groups[-1][0].fleet.capacity:
            groups[-1].append(way)
        else:
            groups.append([way])
    return groups


def _both(axes: Axes, found: Comparison, sessions: np.ndarray) -> list[Line2D]:
    fleet, price = found.best.fleet, found.cheapest.usd
    mixed = [mixed_per_day(count, price, fleet)[0] / count for count in sessions]
    lines = axes.plot(
        sessions, mixed, "--", color="black", linewidth=1.2, label="both: best device, the rest on the API"
    )
    even = break_even(price, fleet)
    if even.first is not None:
        place = (even.first, fleet.per_day(even.first) / even.first)
        axes.plot(*place, "o", color="black", markersize=5, zorder=5)
        axes.annotate(
            f"break-even: {even.first:,} sessions per day", place, xytext=(8, 8), textcoords="offset points"
        )
    return lines


def _api(axes: Axes, found: Comparison, sessions: np.ndarray) -> list[Line2D]:
    lines = []
    for priced, colour, line in ((found.plain, style.GREY, ":"), (found.cheapest, style.GREY, "-")):
        label = f"api: {'no cache_control' if priced.name == 'none' else priced.name}"
        lines += axes.plot(
            sessions, np.full_like(sessions, priced.usd), line, color=colour, linewidth=2, label=label
        )
        axes.fill_between(sessions, priced.low, priced.high, color=colour, alpha=0.25, linewidth=0)
    return lines
