"""Needle heat maps: score by depth of the needle and length of the prompt."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from kvbench.config.text import counted
from kvbench.report import style
from kvbench.report.tables import configurations

_COLUMNS = 4  # with fewer than two budgets


def has_depth(cells: pd.DataFrame) -> pd.Series:
    """Mask of the scored cells whose sample has a needle depth."""
    return cells["score"].notna() & cells["meta"].map(lambda meta: "depth" in meta)


def needle(cells: pd.DataFrame) -> style.Figure:
    """Mean score by depth and length, one panel per method and budget; cells of one setting and one task."""
    cells = cells.assign(depth=[meta["depth"] for meta in cells["meta"]])
    depths, lengths = sorted(cells["depth"].unique()), sorted(cells["length"].unique())
    budgets = cells.loc[~cells["is_dense"], "budget_requested"].nunique()
    columns = budgets if budgets > 1 else _COLUMNS
    found: list[tuple[str, str, pd.DataFrame] | None] = []
    for label, budget, config in configurations(cells):
        found.append((label, budget, config))
        if config["is_dense"].all() and budgets > 1:
            found += [None] * (columns - 1)  # dense has a row of its own, as has each method
    rows = -(-len(found) // columns)
    figure = style.Figure(figsize=(1.9 * columns + 0.9, 1.6 * rows + 0.9), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
    ticks = np.unique(np.linspace(0, len(depths) - 1, 6).round().astype(int))
    colours = ScalarMappable(Normalize(0, 1), "cividis")
    for place, (axes, panel) in enumerate(itertools.zip_longest(all_axes, found)):
        if panel is None:
            axes.remove()
            continue
        label, budget, config = panel
        grid = config.pivot_table(index="depth", columns="length", values="score")
        axes.imshow(
            grid.reindex(index=depths, columns=lengths), norm=colours.norm, cmap=colours.cmap, aspect="auto"
        )
        axes.grid(visible=False)
        axes.set_title(f"{label} {budget}".strip())
        axes.set_yticks(ticks, labels=[f"{depths[i]:g}" for i in ticks] if place % columns == 0 else [])
        bottom = place + columns >= len(found)
        axes.set_xticks(range(len(lengths)), labels=lengths if bottom else [], rotation=45)
    squares = len(depths) * len(lengths) * sum(panel is not None for panel in found)
    figure.supylabel("needle depth (% of the context)", fontsize=9)
    count = counted(len(cells) / squares, "sample", ".3g")
    figure.note = f"{style.subject(cells)}, {cells['task_label'].iloc[0]}, {count} per square"
    figure.supxlabel(f"length (tokens)\n{style.wrapped(figure, figure.note)}", fontsize=9)
    figure.colorbar(colours, ax=figure.axes, label="score", shrink=0.6, aspect=30)
    return figure
