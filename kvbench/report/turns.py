"""Conversations: score by turn."""

import numpy as np
import pandas as pd

from kvbench.config.text import counted
from kvbench.report import stats, style
from kvbench.report.clusters import Clusters
from kvbench.report.summary import budget_key

_SHIFT = 0.15  # maximum shift in x, to keep methods of equal score apart


def has_turn(cells: pd.DataFrame) -> pd.Series:
    """Mask of the scored cells whose sample is a turn of a conversation."""
    return cells["score"].notna() & cells["meta"].map(lambda meta: "turn" in meta)


def by_turn(cells: pd.DataFrame) -> style.Figure:
    """Mean score by turn, one panel per length and budget; cells of one setting and one task."""
    cells = cells.assign(turn=[meta["turn"] + 1 for meta in cells["meta"]])
    dense, others = cells[cells["is_dense"]], cells[~cells["is_dense"]]
    groups = (others if len(others) else dense).groupby(["length", "budget_requested"])
    groups = sorted(groups, key=lambda group: (group[0][0], budget_key(group[0][1])))
    figure, all_axes = style.panels(len(groups))
    looks = style.styles(cells["label"])
    for axes, ((length, budget), panel) in zip(all_axes, groups, strict=True):
        rows = pd.concat([dense[dense["length"] == length], panel[~panel["is_dense"]]])
        for place, (label, look) in zip(np.linspace(-1, 1, len(looks)), looks.items(), strict=True):
            scores = {
                turn: Clusters(answers["score"], answers["cluster"])
                for turn, answers in rows[rows["label"] == label].groupby("turn")
            }
            x = np.array(list(scores)) + place * _SHIFT
            for where, score in zip(x, scores.values(), strict=True):
                axes.vlines(where, *stats.score_interval(score), color=look.colour, alpha=0.5)
            axes.plot(
                x,
                [score.mean for score in scores.values()],
                look.line,
                color=look.colour,
                marker=look.marker,
                markersize=5,
            )
        axes.set_ylim(-0.04, 1.04)
        axes.set_xticks(sorted(rows["turn"].unique()))
        axes.set_xlabel("turn")
        axes.set_ylabel(f"score ({panel['metric'].iloc[0]})")
        tokens = f"{length} tokens, " if length else ""
        axes.set_title(f"{tokens}budget {budget or '-'}")
    samples = int(cells.groupby(["label", "budget_requested", "length", "turn"])["cluster"].nunique().max())
    note = (
        f"{style.subject(cells)}, {cells['task_label'].iloc[0]}, {counted(samples, 'conversation')}. "
        "Bars: 95 % intervals over conversations. Earlier turns hold the gold answers. "
        "Methods are moved sideways to be seen."
    )
    style.legend(figure, style.method_handles(looks), note)
    return figure
