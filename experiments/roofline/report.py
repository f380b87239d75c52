"""Table, CSV and figures of the experiment `roofline`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes

from kvbench.config.files import write
from kvbench.config.text import counted
from kvbench.report import style
from kvbench.report.format import csv_text, markdown_table, number
from kvbench.report.plots import save

DOLLARS = "Modelled dollars per generated token, of dense's, by length of the prompt."


def write_report(frame: pd.DataFrame, folder: Path) -> Path:
    """Write everything to a folder.

    Args:
        frame: from `kvbench.experiments.roofline.run.scan`.
        folder: created if missing.

    Returns:
        The Markdown table.
    """
    write(folder / "roofline.csv", csv_text(frame, "%.6g"))
    table = folder / "table.md"
    write(table, markdown(frame))
    for model, rows in frame.groupby("model"):
        save(
            step_figure(rows),
            folder / "figures",
            f"step.{model}",
            "Modelled time of a decode step by length of the prompt.",
        )
        if rows["usd_per_million_whole_max"].notna().any():
            save(dollars_figure(rows, "whole"), folder / "figures", f"dollars.{model}", DOLLARS)
            save(dollars_figure(rows, "decode"), folder / "figures", f"dollars_decode.{model}", DOLLARS)
    return table


def markdown(frame: pd.DataFrame) -> str:
    """One table per model and device."""
    new, batch = frame["new"].iloc[0], frame["batch"].iloc[0]
    lines = [
        "Every figure here is `modelled`: a lower bound on time and money, see docs/cost.md. "
        + _budgets(frame),
        "",
        f"Dollars are per million generated tokens, {counted(int(new), 'new token')} per request. *Decode only* leaves",
        "prefill out and is at the largest batch that fits, which needs that many requests at once; *whole* is",
        f"prefill, compression and decoding of the request, its steps shared by the largest batch or by {batch}. The",
        "rent is one provider's; dollars scale with it.",
    ]
    for (model, device), rows in frame.groupby(["model", "device"], sort=False):
        price = rows["usd_per_hour"].iloc[0]
        rent = f", ${price:.2f} per hour ({rows['rent'].iloc[0]})" if pd.notna(price) else ""
        lines += ["", f"## {model} on {device}{rent}", ""]
        header = [
            "tokens", "method", "budget", "cache MB", "read MB per step", f"ms per token, batch {batch}",
            "largest batch", "tokens/s at it", "$ per million, decode only, largest batch",
            "$ per million, whole, largest batch", f"$ per million, whole, batch {batch}",
            "$ per 1000 requests, largest batch",
        ]  # fmt: skip
        cells = [_cells(row) for row in rows.sort_values("length", kind="stable").to_dict("records")]
        lines.append(markdown_table(header, cells, right=[name != "method" for name in header]))
    return "\n".join(lines) + "\n"


def _budgets(frame: pd.DataFrame) -> str:
    """What the budgets are."""
    if "matched" not in frame:
        lines = ["Budgets are nominal:"]
        lines += ["methods at the same number neither take the same memory nor give the same answers."]
        return "\n".join(lines)
    run, _, margin = str(frame["matched"].iloc[0]).rpartition(", within ")
    return (
        f"Each budget is\nthe smallest with which its method loses less than {margin} of dense's score in the run "
        f"{run}; methods without one are left out.\nThat it would do for this model and these lengths too is an "
        "assumption."
    )


def _cells(row: dict[str, Any]) -> list[str]:
    bound = "" if row["exact"] else "≤ "
    return [
        str(row["length"]),
        row["method"],
        row["budget"],
        bound + number(row["resident_mb"], ",.0f"),
        bound + number(row["read_mb"], ",.0f"),
        number(row["step_ms"], ",.2f") if row["fits"] else "does not fit",
        str(row["max_batch"]),
        number(row["tokens_per_s_max"], ",.0f"),
        number(row["usd_per_million_decode_max"], ",.3f"),
        number(row["usd_per_million_whole_max"], ",.2f"),
        number(row["usd_per_million_whole"], ",.2f"),
        number(row["usd_per_request_max"], ",.3f", 1000),
    ]


def step_figure(frame: pd.DataFrame) -> style.Figure:
    """Milliseconds per decode step at the configured batch, one panel per device; rows of one model."""

    def finish(axes: Axes, rows: pd.DataFrame) -> list[style.End]:
        floor = rows["weights_ms"].iloc[0]
        axes.set_ylim(bottom=0)
        axes.axhline(floor, color=style.GREY, linestyle=":", linewidth=1.2)
        return [style.End("weights alone", rows["length"].max(), floor, style.GREY)]

    label = f"decode step, batch {frame['batch'].iloc[0]} (ms)"
    return _by_length(frame, "step_ms", label, "Lower bound, weights included.", finish)


def dollars_figure(frame: pd.DataFrame, part: Literal["decode", "whole"]) -> style.Figure:
    """Dollars per new token as a share of dense's, at the largest batch that fits, one panel per device.

    Dense's own dollars stand at its line.

    Args:
        frame: rows of one model.
        part: decoding alone, or whole requests.
    """
    column = f"usd_per_million_{part}_max"
    dense = frame[frame["method"] == "dense"].set_index(["device", "length"])[column]
    of_dense = frame.join(dense.rename("of"), on=["device", "length"])
    frame = frame.assign(dollars=frame[column], **{column: of_dense[column] / of_dense["of"]})

    def finish(axes: Axes, rows: pd.DataFrame) -> list[style.End]:
        axes.set_ylim(0, 1.3)
        for _, row in rows[rows["method"] == "dense"].dropna(subset=["dollars"]).iterrows():
            axes.annotate(
                f"${row['dollars']:.3g}", (row["length"], 1), (0, 6), textcoords="offset points", ha="center",
                fontsize=7.5,
            )  # fmt: skip
        return []

    new = frame["new"].iloc[0]
    what = {
        "decode": "Decoding alone, without prefill",
        "whole": f"Prefill, compression and decoding of {counted(int(new), 'new token')}",
    }[part]
    note = (
        f"Lower bound. {what}, at the largest batch that fits; one provider's rent per device. Above: dense's dollars "
        "per million new tokens."
    )
    return _by_length(frame, column, f"$ per new token ({part}), x of dense", note, finish)


def _by_length(
    frame: pd.DataFrame, column: str, label: str, note: str, finish: Callable[[Axes, pd.DataFrame], list[style.End]]
) -> style.Figure:  # fmt: skip
    """One panel per device; `finish` sets the y axis and returns further names for it."""
    frame = frame.assign(name=(frame["method"] + " " + frame["budget"]).str.strip())
    devices = [
        (device, rows) for device, rows in frame.groupby("device", sort=False) if rows[column].notna().any()
    ]
    with mpl.rc_context(style.SETTINGS):
        looks = style.styles(frame["name"])
        figure, panels = style.panels(len(devices), width=4.4)
        for axes, (device, rows) in zip(panels, devices, strict=True):
            ends = []
            # lines often coincide: later ones are drawn smaller
            for place, (name, look) in enumerate(looks.items()):
                points = rows[rows["name"] == name].dropna(subset=[column]).sort_values("length")
                axes.plot(
                    points["length"], points[column], color=look.colour, marker=look.marker, linestyle=look.line,
                    linewidth=max(1.0, 2.6 - 0.4 * place), markersize=max(3.0, 8 - 0.9 * place),
                )  # fmt: skip
                if len(points):
                    ends.append(
                        style.End(name, points["length"].iloc[-1], points[column].iloc[-1], look.colour)
                    )
            style.length_axis(axes, rows["length"])
            ends += finish(axes, rows)
            style.end_labels(axes, ends)
            axes.set_title(str(device))
            axes.set_xlabel("prompt (tokens)")
            axes.set_ylabel(label)
        budgets = (
            "Budgets are nominal and nothing here was answered by this model: equal budgets do not mean equal answers. "
            "See what a budget costs in accuracy before you compare prices."
        )
        if "matched" in frame:
            budgets = f"Smallest budgets that are good enough in {frame['matched'].iloc[0]}."
        style.caption(figure, f"Modelled. {frame['model'].iloc[0]}, bf16. {note} {budgets}")
    return figure
