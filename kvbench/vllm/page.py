"""Pages of the experiments on vLLM servers: versions and hardware, tables, times and bar figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kvbench.config.files import write
from kvbench.config.text import counted
from kvbench.report import style
from kvbench.report.format import Table
from kvbench.runs.store import Record
from kvbench.vllm.campaign import of_kind


def write_page(
    folder: Path,
    title: str,
    rows: Sequence[Record],
    parts: Iterable[Table | str],
    guide: Sequence[str],
    server_row: str = "setup",
) -> Path:
    """Writes table.md.

    Args:
        folder: the run's.
        title: of the page.
        rows: all rows of the run, those of servers that did not start included.
        parts: tables, and lines between them.
        guide: how to read them, one line each.
        server_row: kind of the rows with the facts of a server.

    Returns:
        The file.
    """
    measured = [row for row in rows if row["row"] != server_row]
    notes = dict.fromkeys(row["note"] for row in measured if row.get("note"))
    refused = [f"- {row['setup']}: {row['refused']}" for row in rows if "refused" in row]
    lines = [f"# {title}", ""]
    lines += [*(f"- **{note}**" for note in notes), ""] if notes else []
    lines += provenance(of_kind(rows, server_row), measured)
    lines += [part if isinstance(part, str) else part.markdown() for part in parts]
    lines += ["### Refused by vLLM", "", *refused, ""] if refused else []
    lines += ["## How to read", "", *(f"- {line}" for line in guide), ""]
    return write(folder / "table.md", "\n".join(lines))


def cut(answers: Sequence[Record]) -> str:
    """Answers that ended at the token limit, of all, as `3/20`."""
    return f"{sum(row['stop'] == 'length' for row in answers)}/{len(answers)}"


def provenance(servers: Sequence[Record], rows: Sequence[Record]) -> list[str]:
    """Lines of Markdown with date, versions and hardware, and each server's flags and KV cache.

    Args:
        servers: facts of the servers, one row each; labelled by `setup` if there are several.
        rows: all rows measured on them.
    """
    days = sorted({row["time"][:10] for row in [*servers, *rows] if "time" in row})
    lines = [f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))}."] if days else []
    lines += dict.fromkeys(_machine(facts) for facts in servers)
    for facts in servers:
        name = f"{facts['setup']}: " if facts.get("setup") else ""
        lines.append(name + "; ".join([_cache(facts["capacity"]), *_flags(facts)]))
    loads = [row["load_average"] for row in rows if "load_average" in row]
    if loads:
        lines.append(
            f"Load average of the client's machine while measuring: {min(loads):.1f} to {max(loads):.1f}. Times on a "
            "busy machine scatter; hits do not."
        )
    return [*(f"- {line}" for line in lines), ""]


def _machine(facts: Record) -> str:
    package = facts.get("package", "a running server")
    hardware = f": {facts['hardware']}" if facts.get("hardware") else ""
    text = f"{facts['model']} on vLLM {facts['vllm']} ({package}), device {facts['device']}{hardware}"
    if not facts.get("versions"):
        return f"{text}."
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    threads = facts["variables"].get("OMP_NUM_THREADS")
    used = f", {counted(int(threads), 'thread')}" if threads else ""
    return f"{text}{used}; {versions}; attention {facts['backend']}."


def _cache(capacity: Mapping[str, Any] | None) -> str:
    if not capacity:
        return "the server does not report the size of its KV cache"
    blocks = f"KV cache of {capacity['tokens']:,} tokens in blocks of {capacity['block_size']}"
    return f"{blocks}, dtype {capacity['dtype']}"


def _flags(facts: Record) -> list[str]:
    return [f"flags `{facts['flags']}`"] if facts.get("flags") else []


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, or a dash if they are unknown."""
    if seconds is None:
        return "-"
    return f"{1000 * seconds:,.0f}" if seconds >= 0.01 else f"{1000 * seconds:.2f}"


def scaled(value: float | None, factor: float) -> float | None:
    """A value in another unit; None if it is unknown."""
    return None if value is None else factor * value


@dataclass(frozen=True)
class Dot:
    """One value of a `dot_figure`.

    Attributes:
        value: its place.
        low: lower end of its interval or spread.
        high: upper end.
        text: printed beside it.
        modelled: whether it is computed and not measured.
    """

    value: float
    low: float
    high: float
    text: str
    modelled: bool = False


def spread(
    values: Sequence[float | None], of: float = 1.0, form: str = "{:.3g}", unit: float = 1.0
) -> Dot | None:
    """Median with the 20th and 80th percentile; None without a value.

    Args:
        values: measured; None is unknown.
        of: what they are divided by.
        form: format of the printed median.
        unit: factor of the printed median.
    """
    known = [value for value in values if value is not None]
    if not known or not of:
        return None
    low, middle, high = np.quantile(known, (0.2, 0.5, 0.8))
    return Dot(float(middle) / of, float(low) / of, float(high) / of, form.format(unit * middle))


def dot_figure(
    columns: Mapping[str, Mapping[str, Mapping[str, Dot | None]]],
    caption: str,
    limits: Mapping[str, float] | None = None,
) -> style.Figure:
    """Dots with intervals: one column per quantity, one block of rows per group; the first row of a block is marked.

    Args:
        columns: by title and group the value of each label; None is unknown and not drawn.
        caption: small print below.
        limits: upper end of the axis of a title; otherwise as far as the values reach.
    """
    groups = {group: list(rows) for group, rows in next(iter(columns.values())).items() if rows}
    count = sum(map(len, groups.values())) + len(groups)
    figure = style.Figure(figsize=(1.3 + 2.05 * len(columns), 0.9 + 0.27 * count), layout="constrained")
    ratios = [len(labels) + 0.5 for labels in groups.values()]
    grid = figure.subplots(len(groups), len(columns), squeeze=False, height_ratios=ratios)
    for (title, values), axes_of_column in zip(columns.items(), grid.T, strict=True):
        known = [dot for rows in values.values() for dot in rows.values() if dot is not None]
        top = (limits or {}).get(title) or 1.05 * max((dot.high for dot in known), default=0.0) or 1.0
        for (group, labels), axes in zip(groups.items(), axes_of_column, strict=True):
            first = axes is grid[list(groups).index(group)][0]
            _dots(axes, values[group], labels, top)
            axes.set_yticks(range(len(labels)), labels=labels if first else [""] * len(labels))
            axes.set_xlim(-0.05 * top, 1.35 * top)
            if group and first:
                axes.set_ylabel(group, fontweight="bold")
            if axes is axes_of_column[0]:
                axes.set_title(title)
            if axes is not axes_of_column[-1]:
                axes.tick_params(axis="x", labelbottom=False)
    style.caption(figure, caption)
    return figure


def _dots(axes: Axes, rows: Mapping[str, Dot | None], labels: Sequence[str], top: float) -> None:
    looks = style.styles(labels)
    for place, label in enumerate(labels):
        dot, look = rows[label], looks["dense" if place == 0 else label]
        if dot is None:
            axes.text(0.02 * top, place, "-", va="center", fontsize=8, color=style.GREY)
            continue
        axes.hlines(place, dot.low, dot.high, color=look.colour, linewidth=2, alpha=0.45)
        fill = "none" if dot.modelled else "full"
        axes.plot(dot.value, place, look.marker, color=look.colour, markersize=6.5, fillstyle=fill)
        axes.annotate(
            dot.text,
            (max(dot.value, dot.high), place),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    baseline = rows[labels[0]]
    if baseline is not None:
        axes.axvline(baseline.value, color=style.DENSE_COLOUR, linewidth=0.8, linestyle=":")
    axes.set_ylim(len(labels) - 0.5, -0.6)
    axes.grid(visible=False, axis="y")
