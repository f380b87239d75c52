"""Figures of time: stages of a prompt, and decode steps of one method at a time."""

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from kvbench.report import style
from kvbench.report.tables import stage_seconds

STAGES = {
    "prefill_s": ("prefill", "#0072B2"),
    "compress_s": ("compress", "#E69F00"),
    "decode_s": ("decode", "#009E73"),
}


def stages(rows: pd.DataFrame) -> style.Figure:
    """Seconds per stage, one panel per length; rows of one setting and one kind of timing.

    Amortised rows have a bar per task, as methods share the time of a prompt; isolated rows have one per method.
    """
    if (rows["timing"] == "isolated").all():
        rows = rows[rows["batch"] == rows["batch"].min()]
        seconds = rows.groupby(["length", "label"])[list(STAGES)].mean()
        how = f"one method at a time (isolated), batch {rows['batch'].min():.0f}, mean over budgets"
    else:
        seconds = stage_seconds(rows)[list(STAGES)]
        how = "all cells of a prompt together (amortised)"
    panels = list(seconds.groupby(level="length"))
    figure, all_axes = style.panels(len(panels), height=0.9 + 0.22 * max(len(bars) for _, bars in panels))
    for axes, (length, bars) in zip(all_axes, panels, strict=True):
        left = np.zeros(len(bars))
        for stage, (_, colour) in STAGES.items():
            axes.barh(bars.index.get_level_values(1), bars[stage], left=left, color=colour)
            left += bars[stage].fillna(0).to_numpy()
        for place, values in enumerate(bars.to_numpy()):
            text = " + ".join(f"{value:.2g}" for value in values)
            axes.text(left[place], place, f"  {text}", va="center", fontsize=8)
        axes.set_xlim(0, 1.6 * left.max())
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds per prompt")
        axes.set_title(f"{length} tokens" if length else "prompts as they are")
    handles = [Patch(color=colour, label=name) for name, colour in STAGES.values()]
    style.legend(figure, handles, f"{style.subject(rows)}. Medians; {how}.")
    return figure


def decode_by_length(rows: pd.DataFrame) -> style.Figure:
    """Decode ms per token against length, one panel per batch size; isolated rows of one setting."""
    return _decode(rows, x="length", panel_by="batch", x_label="length (tokens)", title="batch {:.0f}")


def decode_by_batch(rows: pd.DataFrame) -> style.Figure:
    """Decode ms per token against batch size, one panel per length; isolated rows of one setting."""
    return _decode(rows, x="batch", panel_by="length", x_label="batch (sequences)", title="{} tokens")


def _decode(rows: pd.DataFrame, x: str, panel_by: str, x_label: str, title: str) -> style.Figure:
    groups = list(rows.groupby(panel_by))
    figure, all_axes = style.panels(len(groups))
    rows = rows.assign(name=(rows["label"] + " " + rows["budget_requested"]).str.strip())
    # summaries of earlier versions have no such column
    if "step" in rows and rows["step"].nunique() > 1:
        rows["name"] += " (" + rows["step"] + ")"
    looks = style.styles(rows["name"])
    for axes, (value, panel) in zip(all_axes, groups, strict=True):
        for name, points in rows.loc[panel.index].sort_values(x).groupby("name"):
            look = looks[str(name)]
            axes.plot(
                points[x],
                points["decode_ms_per_token"],
                color=look.colour,
                marker=look.marker,
                linestyle=look.line,
                linewidth=1.2,
                markersize=5,
            )
            axes.fill_between(
                points[x],
                points["decode_ms_p20"],
                points["decode_ms_p80"],
                color=look.colour,
                alpha=0.2,
                lw=0,
            )
        ticks = sorted(panel[x].unique())
        axes.set_xscale("log")
        axes.set_xticks(ticks, labels=[f"{tick:.0f}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        style.log_axis(axes, "y")
        axes.set_xlabel(x_label)
        axes.set_ylabel("decode step (ms per token)")
        axes.set_title(title.format(value))
    note = (
        f"{style.subject(rows)}. One method at a time; medians, bands from the 20th to the 80th percentile."
    )
    style.legend(figure, style.method_handles(looks), note)
    return figure
