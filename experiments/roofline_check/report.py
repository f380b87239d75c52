"""Table and figures of the experiment `roofline_check`."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.lines import Line2D

from kvbench.config.files import write
from kvbench.experiments.roofline_check.config import FIXED_LENGTH
from kvbench.report import style
from kvbench.report.format import markdown_table, number
from kvbench.report.plots import save

HEADING = "Measured and modelled time of attention in a decode step, by length of the prompt."


def write_report(frame: pd.DataFrame, folder: Path) -> Path:
    """Write table and figures.

    Args:
        frame: from `kvbench.experiments.roofline_check.run.check`.
        folder: the run's, which exists.

    Returns:
        The Markdown table.
    """
    table = folder / "table.md"
    write(table, markdown(frame))
    for model, rows in frame.groupby("model"):
        device = ", ".join(sorted(set(rows["device"])))
        note = (
            f"{model}, one sequence, bf16, on {device}. Medians, bands from the 20th to the 80th percentile."
        )
        save(figure(rows, note), folder / "figures", f"check.{model}", HEADING)
    return table


def markdown(frame: pd.DataFrame) -> str:
    """The table, headed by what was measured where."""
    models, device, torch_version, date = (
        ", ".join(sorted(set(frame[name].astype(str)))) for name in ("model", "device", "torch", "date")
    )
    middle, low, high = (frame["read_gb_per_s"].quantile(q) for q in (0.5, 0, 1))
    lines = [
        f"Attention of one layer and decode step, {models}, one sequence, bf16, caches cold; {device},",
        f"torch {torch_version}, {date}. Measured: medians (20th to 80th percentile). Modelled: bytes over the read",
        f"bandwidth, {middle:.1f} GB/s, the median of a reading per row ({low:.1f} to {high:.1f}): a lower bound.",
        f"Fixed: a step over {FIXED_LENGTH} tokens less what its bytes take, measured per method.",
    ]
    header = [
        "tokens", "method", "budget", "read MB", "measured ms", "modelled ms", "measured / modelled", "fixed ms",
        "measured / (modelled + fixed)", "faster than dense", "modelled",
    ]  # fmt: skip
    cells = []
    for row in frame.sort_values(["length", "method"], kind="stable").to_dict("records"):
        spread = f"{row['median_ms']:.3f} ({row['p20_ms']:.3f} to {row['p80_ms']:.3f})"
        cells.append(
            [str(row["length"]), row["method"], row["budget"], number(row["read_mb"], ".2f"), spread]
        )
        columns = {"modelled_ms": ".3f", "ratio": ".2f", "fixed_ms": ".3f", "ratio_with_fixed": ".2f"}
        cells[-1] += [number(row[name], spec) for name, spec in columns.items()]
        cells[-1] += [f"{row[name]:.1f} x" for name in ("speedup", "speedup_modelled")]
    table = markdown_table(header, cells, right=[name != "method" for name in header])
    return "\n".join([*lines, "", table]) + "\n"


def figure(frame: pd.DataFrame, note: str) -> style.Figure:
    """Measured and modelled milliseconds, and their ratio, against length; rows of one model."""
    frame = frame.assign(name=(frame["method"] + " " + frame["budget"]).str.strip())
    frame["with_fixed_ms"] = frame["modelled_ms"] + frame["fixed_ms"]
    with mpl.rc_context(style.SETTINGS):
        looks = style.styles(frame["name"])
        drawn, (times, ratios) = style.panels(2, height=3.4)
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
            style.length_axis(axes, frame["length"])
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
        style.legend(drawn, [*style.method_handles(looks), *handles], note)
    return drawn
