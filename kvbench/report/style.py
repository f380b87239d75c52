"""The look of every figure: colours, markers, fonts, panel grids."""

import hashlib
import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.sax.saxutils import escape

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
    """A figure outside pyplot's global state that still shows itself in a notebook.

    Attributes:
        heading: what it shows, one sentence; the title of the SVG.
        note: what it was measured on and how to read it; the description of the SVG.
    """

    heading: str = ""
    note: str = ""

    def _repr_png_(self) -> bytes:
        return render(self, "png")


@dataclass(frozen=True)
class Style:
    """Colour, marker and line of a method; the pair of colour and marker is unique in a figure."""

    colour: str
    marker: str
    line: Literal["-", "--", "-.", ":"]


# one look per method, in every figure and page; a family shares a hue
_LOOKS: dict[str, tuple[str, str]] = {
    # by attention: blue
    "snapkv": ("#0072B2", "o"),
    "snapkv_rocketkv": ("#0072B2", "P"),
    "pyramidkv": ("#56B4E9", "^"),
    "adakv": ("#00456B", "s"),
    "adakv_expected_attention": ("#3A7CA5", "P"),
    "expected_attention": ("#2F9BD8", "D"),
    "h2o": ("#6C8EBF", "v"),
    "observed_attention": ("#88A9C3", "X"),
    "tova": ("#1F5FA8", "<"),
    "kvzip": ("#274690", "P"),
    # while decoding: teal
    "decode_every": ("#008B9A", "o"),
    "rkv": ("#4FB3BF", "s"),
    "rpc": ("#00616B", "D"),
    # by chunks: yellow
    "chunkkv": ("#E69F00", "s"),
    "egchunkkv": ("#B37A00", "D"),
    # by keys: olive
    "knorm": ("#8C7A00", "^"),
    "keydiff": ("#B5A642", "v"),
    # by position or chance: grey
    "streaming_llm": ("#777777", ">"),
    "random": ("#A9A9A9", "X"),
    # selections: green
    "quest": ("#009E73", "o"),
    "quest_rocketkv": ("#009E73", "D"),
    "sparq": ("#5BC3A5", "^"),
    "block_topk": ("#2E8B6F", "v"),
    "hsa": ("#00644A", "s"),
    # oracles: brown
    "topk_oracle": ("#7A4B2A", "P"),
    "static_oracle": ("#A5714B", "D"),
    # eviction and selection under one budget: red
    "rocketkv": ("#D55E00", "D"),
    "rocketkv_mt": ("#F08A4B", "o"),
    "rocketkv_trtllm": ("#9C4400", "s"),
    # formats: purple
    "fp8_e4m3": ("#CC79A7", "o"),
    "fp8_e5m2": ("#A3527F", "s"),
    "int8": ("#8E6BB0", "^"),
    "int4": ("#B79AD3", "v"),
    "int2": ("#5F3F86", "D"),
    "fp8_token": ("#CC79A7", "P"),
    "int8_token": ("#8E6BB0", "P"),
    "int4_token": ("#B79AD3", "P"),
    "turboquant": ("#7B4FA3", "X"),
    "bf16": ("#E0A9C8", ">"),
    "fp16": ("#D79BC0", "<"),
}


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """One style per label, no two alike; dense comes first and is black, the others are sorted.

    A method has the same colour and marker in every figure. Variants of a method (`chunkkv (chunk=20)`) share its
    colour. Names that are no method of kvbench get a colour and a marker from a hash of the name; only where a figure
    has that colour already do they get the next one.
    """
    found: dict[str, Style] = {"dense": Style(DENSE_COLOUR, "*", "-")}
    names = sorted(set(labels) - {"dense"}, key=lambda label: (label not in _LOOKS, label))
    for name in names:
        known = _LOOKS.get(name) or _LOOKS.get(re.split(r"[ (\[]", name)[0])
        colours = _rotated(COLOURS, name) if known is None else [known[0]]
        used = {look.colour for look in found.values()}
        colour = next((one for one in colours if one not in used), colours[0])
        markers = _rotated(MARKERS, name) if known is None else _from(MARKERS, known[1])
        same = [look for look in found.values() if look.colour == colour]
        marker = next((one for one in markers if one not in {look.marker for look in same}), markers[0])
        line = "-" if name in _LOOKS else LINES[len(same) % len(LINES)]
        found[name] = Style(colour, marker, line)
    return {"dense": found["dense"]} | {name: found[name] for name in sorted(set(names))}


def _rotated(choices: Sequence[str], name: str) -> list[str]:
    """The choices, beginning with one that depends on the name alone."""
    start = int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(choices)
    return [*choices[start:], *choices[:start]]


def _from(choices: Sequence[str], first: str) -> list[str]:
    start = choices.index(first)
    return [*choices[start:], *choices[:start]]


def panels(
    count: int,
    height: float = PANEL_HEIGHT,
    columns: int = COLUMNS,
    width: float = PANEL_WIDTH,
    shared: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `columns` per row; `shared` axes have the same limits in every panel."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * max(columns, 1.6), height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).flatten().tolist()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def legend(figure: Figure, handles: Sequence[Artist], note: str) -> None:
    """A legend below the panels, titled with a note in small print."""
    figure.note, note = note, wrapped(figure, note)
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


def caption(figure: Figure, note: str) -> None:
    """A note in small print below the panels."""
    figure.note = note
    lines = wrapped(figure, note)
    figure.set_figheight(figure.get_figheight() + 0.15 * lines.count("\n"))
    figure.supxlabel(lines, fontsize=8)


def wrapped(figure: Figure, note: str) -> str:
    """Small print, wrapped to the width of the figure."""
    return textwrap.fill(note, _characters(figure))


@dataclass(frozen=True)
class End:
    """The end of a line, or a point, that bears its name.

    Attributes:
        text: the name.
        x: place, in data coordinates.
        y: place, in data coordinates.
        colour: of the text.
    """

    text: str
    x: float
    y: float
    colour: str


def end_labels(axes: Axes, ends: Iterable[End], size: float = 7.5) -> None:
    """Names right of the panel at the height of their lines, moved apart where they would overlap.

    Call it once the limits of the axes and the size of the figure are final. A thin line leads from a name to its end.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    rows = axes.get_subplotspec()
    share = 1 if rows is None else 1 / rows.get_gridspec().nrows
    # of the height of a row of panels more than a third may belong to its title, ticks and label
    step = 1.25 * size / 72 / (0.62 * figure.get_figheight() * share)
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted(
        ((float(to_axes.transform((end.x, end.y))[1]), end) for end in ends), key=lambda pair: pair[0]
    )
    heights = _apart([height for height, _ in placed], step)
    for place, (_, end) in zip(heights, placed, strict=True):
        axes.annotate(
            end.text,
            (end.x, end.y),
            (1.03, place),
            textcoords="axes fraction",
            fontsize=size,
            color=end.colour,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.5, "alpha": 0.5, "shrinkB": 3},
        )


def _apart(heights: Sequence[float], step: float) -> list[float]:
    """Sorted heights, moved as little as needed to be `step` apart, and within 0 and 1 where they have room."""
    groups: list[tuple[float, int]] = []  # sum of the heights that a group starts at, members
    for index, height in enumerate(heights):
        total, count = height - index * step, 1
        while groups and groups[-1][0] / groups[-1][1] > total / count:
            before, members = groups.pop()
            total, count = total + before, count + members
        groups.append((total, count))
    starts = [total / count for total, count in groups for _ in range(count)]
    room = 1 - (len(heights) - 1) * step
    if room > 0:
        starts = [min(max(start, 0.0), room) for start in starts]
    return [start + index * step for index, start in enumerate(starts)]


def _characters(figure: Figure) -> int:
    return int(14 * figure.get_figwidth())  # at 8 pt


def method_handles(looks: dict[str, Style]) -> list[Line2D]:
    """Legend entries of methods."""
    return [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.line, markersize=5, label=label)
        for label, look in looks.items()
    ]


def subject(rows: pd.DataFrame) -> str:
    """What the rows of one setting were measured on, and in which runs if there are several."""
    runs = f", runs {joined(rows['run'])}" if "run" in rows and rows["run"].nunique() > 1 else ""
    model, dtype, device, protocol = (joined(rows[name]) for name in ("model", "dtype", "device", "protocol"))
    return f"{model}, {dtype} on {device}, {protocol}{runs}"


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


def render(figure: Figure, form: str) -> bytes:
    """The figure as "svg" or "png", without a date; an SVG's title and description are the heading and the note."""
    buffer = io.BytesIO()
    with mpl.rc_context(SETTINGS):
        figure.savefig(buffer, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None)
    figure.set_layout_engine("none")  # keep the layout for the next format
    return described(buffer.getvalue(), figure) if form == "svg" else buffer.getvalue()


def described(svg: bytes, figure: Figure) -> bytes:
    """The SVG with a title and a description for readers that do not see it."""
    assert figure.heading and figure.note, "a figure needs a heading and a note"
    start, tag, rest = svg.partition(b"<svg ")
    attributes, end, body = rest.partition(b">\n")
    words = f"<title>{escape(figure.heading)}</title>\n <desc>{escape(figure.note)}</desc>\n"
    return start + tag + b'role="img" ' + attributes + end + b" " + words.encode() + body
