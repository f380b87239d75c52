"""Compositions of an eviction and a selection: a map of all pairs."""

import itertools
import json

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

from kvbench.report import style
from kvbench.report.pareto import KL_FLOOR
from kvbench.report.summary import distinguish

ROLES = ["eviction", "selection"]


def several(rows: pd.DataFrame) -> pd.Series:
    """Mask of the compositions; all False unless there are several evictions and several selections."""
    composed = rows["params"].map(lambda text: set(ROLES) <= json.loads(text).keys())
    found = rows[composed & rows["kl_to_dense"].notna() & rows["score"].notna()]
    enough = all(found[role].nunique() > 1 for role in ROLES)
    return rows.index.isin(found.index) & enough


def pairs(rows: pd.DataFrame) -> style.Figure:
    """KL (colour) and score (number) by eviction and selection; rows of one setting.

    One panel per length, task, budget, `keep` and format.
    """
    params = [json.loads(text) for text in rows["params"]]
    named = {
        role: distinguish(rows[role], [entry.get(role, {}) for entry in params])
        for role in (*ROLES, "format")
    }
    keep = [f"keeps {entry['keep']}, " if "keep" in entry else "" for entry in params]
    rows = rows.assign(keep=keep, kl_to_dense=rows["kl_to_dense"].clip(lower=KL_FLOOR), **named)
    evictions, selections = (sorted(rows[role].unique()) for role in ROLES)
    groups = list(rows.groupby(["length", "task_label", "budget_requested", "keep", "format"]))
    columns = min(style.COLUMNS, len(groups))
    lines = -(-len(groups) // columns)
    width, height = 0.95 * len(selections) + 2.2, 0.24 * len(evictions) + 1.2
    figure = style.Figure(figsize=(width * columns + 0.8, height * lines + 0.6), layout="constrained")
    all_axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for unused in all_axes[len(groups) :]:
        unused.remove()
    low, high = rows["kl_to_dense"].min(), rows["kl_to_dense"].max()
    colours = ScalarMappable(LogNorm(low, max(high, 2 * low)), "cividis_r")
    for axes, ((length, task, budget, keep, form), panel) in zip(all_axes, groups, strict=False):
        kl, score = (
            panel.pivot_table(index="eviction", columns="selection", values=value)
            .reindex(index=evictions, columns=selections)
            .to_numpy()
            for value in ("kl_to_dense", "score")
        )
        dark = np.asarray(colours.norm(kl)) > 0.5
        axes.imshow(kl, norm=colours.norm, cmap=colours.cmap, aspect="auto")
        for y, x in itertools.product(range(len(evictions)), range(len(selections))):
            if np.isfinite(score[y, x]):
                ink = "white" if dark[y, x] else "black"
                axes.text(x, y, f"{score[y, x]:.2f}", ha="center", va="center", fontsize=8, color=ink)
        axes.grid(visible=False)
        axes.set_xticks(range(len(selections)), labels=selections)
        axes.set_yticks(range(len(evictions)), labels=evictions)
        stored = f", {form}" if form != "native" else ""
        axes.set_title(
            f"{task}, {length} tokens\n{keep}budget {budget}{stored}, n = {panel['n'].max()}, "
            f"dense {panel['dense_score'].max():.2f}"
        )
    style.caption(figure, f"{style.subject(rows)}. Numbers: score.")
    label = "KL from dense (nats per token)"
    figure.colorbar(colours, ax=figure.axes, label=label, shrink=0.6, aspect=30, format="%g")
    return figure
