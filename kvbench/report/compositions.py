"""Compositions of an eviction and a selection: a map of all pairs, with each alone at the margins."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from kvbench.report import style
from kvbench.report.pareto import KL_FLOOR
from kvbench.report.summary import distinguish

ROLES = ["eviction", "selection"]
ALONE = "alone"
_PLACE = ["length", "task_label", "budget_requested", "keep", "format"]


def several(rows: pd.DataFrame) -> pd.Series:
    """Mask of the compositions, and of their evictions and selections alone.

    All False unless there are several evictions and several selections.
    """
    composed = _composed(rows)
    measured = rows["kl_to_dense"].notna() & rows["score"].notna() & ~rows["is_dense"]
    found = rows[composed & measured]
    enough = all(found[role].nunique() > 1 for role in ROLES)
    return measured & enough


def pairs(rows: pd.DataFrame) -> style.Figure:
    """Score and KL by eviction and selection, sorted by their means; rows of one setting.

    One row of panels per length, task, budget, `keep` and format. At the margins are the eviction alone with a budget
    of what the composition keeps, and the selection alone at its budget, where the rows have them.
    """
    composed = _composed(rows)
    alone, rows = rows[~composed], rows[composed]
    params = [json.loads(text) for text in rows["params"]]
    named = {
        role: distinguish(rows[role], [entry.get(role, {}) for entry in params])
        for role in (*ROLES, "format")
    }
    own = {f"own_{role}": [_text(entry[role]) for entry in params] for role in ROLES}
    keep = [entry.get("keep") for entry in params]
    rows = rows.assign(keep=[str(kept or "") for kept in keep], **named, **own)
    groups = list(rows.groupby(_PLACE))
    size = [rows[role].nunique() + 1 for role in ROLES]
    figure = style.Figure(
        figsize=(2 * (0.72 * size[1] + 0.3) + 2.4, len(groups) * (0.24 * size[0] + 1.2) + 0.5),
        layout="constrained",
    )
    grid = figure.subplots(len(groups), 2, squeeze=False)
    low = max(KL_FLOOR, float(rows["kl_to_dense"].min()))
    norms = {
        "score": ("cividis", Normalize(0, 1)),
        "kl_to_dense": ("cividis_r", LogNorm(low, max(float(rows["kl_to_dense"].max()), 2 * low))),
    }
    for (left, right), (place, panel) in zip(grid, groups, strict=True):
        maps = {column: _map(panel, alone, column, place) for column in norms}
        order = _order(maps["score"], maps["kl_to_dense"])
        length, task, budget, kept, form = place
        stored = f", {form}" if form != "native" else ""
        keeps = f"keeps {kept}, " if kept else ""
        titles = {
            "score": f"score: {task}, {length} tokens\n{keeps}budget {budget}{stored}, n = {panel['n'].max()}, "
            f"dense {panel['dense_score'].max():.2f}",
            "kl_to_dense": "KL from dense\n(nats per token)",
        }
        for axes, (column, (colours, norm)) in zip((left, right), norms.items(), strict=True):
            _draw(
                axes, maps[column].reindex(index=order[0], columns=order[1]), colours, norm, column == "score"
            )
            axes.set_title(titles[column])
            if axes is right:
                axes.set_yticks(range(len(order[0])), labels=[""] * len(order[0]))
    note = f"{style.subject(pd.concat([rows, alone]))}. Sorted by mean."
    if any(ALONE in _map(panel, alone, "score", place).columns for place, panel in groups):
        note += " alone: the eviction, what it keeps read whole; the selection over the whole cache."
    style.caption(figure, note)
    return figure


def _composed(rows: pd.DataFrame) -> pd.Series:
    return rows["params"].map(lambda text: set(ROLES) <= json.loads(text).keys())


def _text(params: object) -> str:
    return json.dumps(params, sort_keys=True)


def _map(panel: pd.DataFrame, alone: pd.DataFrame, column: str, place: tuple[object, ...]) -> pd.DataFrame:
    """Values by eviction and selection, with the margins that are there."""
    length, task, budget, kept, form = place
    grid = panel.pivot_table(index="eviction", columns="selection", values=column)
    here = alone[(alone["length"] == length) & (alone["task_label"] == task) & (alone["format"] == form)]
    here = here.assign(own=[_text(json.loads(text)) for text in here["params"]])
    margins = {
        "eviction": here[(here["selection"] == "all") & (here["budget_requested"] == kept)],
        "selection": here[(here["eviction"] == "none") & (here["budget_requested"] == budget)],
    }
    values = {role: rows.groupby([role, "own"])[column].mean() for role, rows in margins.items()}
    margin = {role: {} for role in ROLES}
    for role in ROLES:
        for kind, (_, pair) in zip(panel[role], panel[[role, f"own_{role}"]].iterrows(), strict=True):
            bare = str(kind).partition(" (")[0]
            if (bare, pair.iloc[1]) in values[role].index:
                margin[role][kind] = values[role][(bare, pair.iloc[1])]
    if margin["eviction"]:
        grid[ALONE] = pd.Series(margin["eviction"]).reindex(grid.index)
    if margin["selection"]:
        grid.loc[ALONE] = pd.Series(margin["selection"]).reindex(grid.columns)
    return grid


def _order(score: pd.DataFrame, kl: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Rows and columns by mean score, of equal ones by mean logarithm of KL; the margins last."""
    inner = [axis.drop(ALONE, errors="ignore") for axis in (score.index, score.columns)]
    score, log_kl = score.loc[inner[0], inner[1]], np.log(kl.loc[inner[0], inner[1]].clip(lower=KL_FLOOR))
    orders = []
    for axis, names in ((1, inner[0]), (0, inner[1])):
        means, distances = score.mean(axis=axis).round(9), log_kl.mean(axis=axis)
        order = sorted(names, key=lambda name: (-means[name], distances[name]))
        orders.append(order)
    rows, columns = orders
    return [*rows, *([ALONE] if ALONE in kl.index else [])], [
        *columns,
        *([ALONE] if ALONE in kl.columns else []),
    ]


def _draw(axes: Axes, grid: pd.DataFrame, colours: str, norm: Normalize, score: bool) -> None:
    """The numbers, in squares of their colour."""
    values = grid.to_numpy(float)
    shown = values if score else np.clip(values, KL_FLOOR, None)
    image = axes.imshow(shown, norm=norm, cmap=colours, aspect="auto")
    for y, x in itertools.product(*map(range, values.shape)):
        if np.isfinite(values[y, x]):
            red, green, blue, _ = image.cmap(norm(shown[y, x]))
            ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
            text = f"{values[y, x]:.2f}" if score else f"{values[y, x]:.2g}"
            axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color=ink)
    axes.grid(visible=False)
    axes.set_xticks(range(len(grid.columns)), labels=grid.columns, rotation=20)
    axes.set_yticks(range(len(grid)), labels=grid.index)
    if ALONE in grid.columns:
        axes.axvline(len(grid.columns) - 1.5, color="white", linewidth=3)
    if ALONE in grid.index:
        axes.axhline(len(grid) - 1.5, color="white", linewidth=3)
