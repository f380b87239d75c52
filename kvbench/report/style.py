"""The look of every figure: colours, markers, fonts, panel grids."""

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.figure
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axes._secondary_axes import SecondaryAxis
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from kvbench.report.summary import joined

# Okabe & Ito (2008), without black, which is dense, and with a darker yellow
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7A00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "h", ">", "*")
LINES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
DENSE_COLOUR = "#222222"
GREY = "#888888"
FAINT = "#cccccc"

PANEL_WIDTH, PANEL_HEIGHT, COLUMNS = 3.6, 2.9, 2  # inches
SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.parse_math": False,  # labels are user input
    "svg.hashsalt": "kvbench",  # the same figure gives the same file
}


class Figure(matplotlib.figure.Figure):
    """A figure outside pyplot's global state that still shows itself in a notebook."""

    def _repr_png_(self) -> bytes:
        return render(self, "png")


@dataclass(frozen=True)
class Style:
    """Colour, marker and line of a method; the pair of colour and marker is unique."""

    colour: str
    marker: str
    line: Literal["-", "--", "-.", ":"]


def styles(labels: Iterable[str], groups: Mapping[str, str] | None = None) -> dict[str, Style]:
    """One style per method label, in sorted order; dense comes first and is black.

    Labels of a group are adjacent, so that few of them share a colour.
    """
    groups = groups or {}
    others = sorted(set(labels) - {"dense"}, key=lambda label: (groups.get(label, ""), label))
    chosen = {
        label: Style(
            COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i // len(COLOURS) % len(LINES)]
        )
        for i, label in enumerate(others)
    }
    return {"dense": Style(DENSE_COLOUR, "*", "-")} | chosen


def panels(count: int, height: float = PANEL_HEIGHT, columns: int = COLUMNS) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `columns` per row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL_WIDTH * max(columns, 1.6), height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def legend(figure: Figure, handles: Sequence[Artist], note: str) -> None:
    """A legend below the panels, titled with a note in small print."""
    note = wrapped(figure, note)
    columns = max(
        1, min(4, _characters(figure) // (max(len(str(handle.get_label())) for handle in handles) + 8))
    )
    lines = -(-len(handles) // columns) + note.count("\n") + 1
    figure.set_figheight(figure.get_figheight() + 0.17 * lines)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        title=note,
        title_fontsize=8,
    )


def wrapped(figure: Figure, note: str) -> str:
    """Small print, wrapped to the width of the figure."""
    return textwrap.fill(note, _characters(figure))


def _characters(figure: Figure) -> int:
    return int(14 * figure.get_figwidth())  # at 8 pt


def method_handles(looks: dict[str, Style]) -> list[Line2D]:
    """Legend entries of methods."""
    return [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.line, markersize=5, label=label)
        for label, look in looks.items()
    ]


def subject(rows: pd.DataFrame) -> str:
    """What the rows of one setting were measured on."""
    model, dtype, device, protocol = (joined(rows[name]) for name in ("model", "dtype", "device", "protocol"))
    return f"{model}, {dtype} on {device}, {protocol}"


def log_axis(axes: Axes | SecondaryAxis, which: str, form: str = "%g") -> None:
    """A log axis with plain numbers at a readable density; call it after plotting."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis = axes.xaxis if which == "x" else axes.yaxis
    subs = (1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5) if high < 300 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FormatStrFormatter(form))
    axis.set_minor_locator(NullLocator())


def length_axis(axes: Axes, lengths: pd.Series) -> None:
    """A log axis with a tick at each length, in units of 1024 where whole."""
    ticks = sorted(lengths.unique())
    axes.set_xscale("log")
    axes.set_xticks(ticks, labels=[f"{tick // 1024}K" if tick % 1024 == 0 else str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def render(figure: matplotlib.figure.Figure, form: str) -> bytes:
    """The figure as "svg" or "png", without a date."""
    buffer = io.BytesIO()
    with mpl.rc_context(SETTINGS):
        figure.savefig(buffer, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None)
    figure.set_layout_engine("none")  # keep the layout for the next format
    return buffer.getvalue()
