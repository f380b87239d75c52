"""How far the best methods are from an eviction that knows what will be asked."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kvbench.report import stats, style
from kvbench.report.format import MB
from kvbench.report.pareto import KL_FLOOR
from kvbench.report.summary import budget_key

_ORACLE = "static_oracle"


def with_oracle(rows: pd.DataFrame) -> pd.Series:
    """Mask of the rows with a KL at a budget that does not cover the prompt; all False without the oracle."""
    wanted = rows["kl_to_dense"].notna() & ~rows["is_dense"] & ~rows["budget_covers_prompt"]
    return wanted & (rows["budget_requested"] != "") & (rows["eviction"] == _ORACLE).any()


def distance(rows: pd.DataFrame) -> style.Figure:
    """KL against bytes read of the oracle and of the best of each family, on shared axes; rows of one setting.

    The best has the lowest geometric mean of KL over tasks, lengths and budgets.
    """
    places = rows.loc[rows["eviction"] == _ORACLE, ["length", "task_label"]].drop_duplicates()
    rows = rows.merge(places)
    chosen = _best(rows)
    groups = list(rows[rows["label"].isin(chosen)].groupby(["length", "task_label"]))
    figure, all_axes = style.panels(len(groups), columns=3, height=2.5, shared=True)
    names = ", ".join(f"{label} is the best {family}" for label, family in chosen.items() if family)
    style.caption(
        figure,
        f"{style.subject(rows)}, n = {rows['n'].max()}. Bars: 95 % intervals{stats.former(rows['stats_version'])}. "
        f"Points: budgets {', '.join(sorted(set(rows['budget_requested']), key=budget_key))}. {names} (lowest "
        "geometric mean of KL over all panels and budgets).",
    )
    looks = style.styles(chosen)
    found: list[list[style.End]] = []
    for place, (axes, ((length, task), panel)) in enumerate(zip(all_axes, groups, strict=True)):
        ends = []
        for label in chosen:
            points, look = panel[panel["label"] == label].sort_values("bytes_read_per_step"), looks[label]
            x = points["bytes_read_per_step"] / MB
            y, low, high = (
                points[["kl_to_dense", "kl_ci_low", "kl_ci_high"]].clip(lower=KL_FLOOR).to_numpy().T
            )
            axes.vlines(x, low, high, color=look.colour, linewidth=1, alpha=0.5)
            axes.plot(x, y, look.line, color=look.colour, marker=look.marker, linewidth=1.2, markersize=5)
            if len(points):
                ends.append(style.End(label, x.iloc[-1], y[-1], look.colour))
        axes.set_title(f"{task}, {length:,} tokens")
        if place + 3 >= len(groups):
            axes.set_xlabel("KV bytes read per step (MB)")
            axes.tick_params(axis="x", labelbottom=True)
        if place % 3 == 0:
            axes.set_ylabel("KL from dense (nats)")
        found.append(ends)
    for axes, ends in zip(all_axes, found, strict=True):
        style.log_axis(axes, "x")
        style.log_axis(axes, "y")
        style.end_labels(axes, ends, size=7)
    return figure


def _best(rows: pd.DataFrame) -> dict[str, str]:
    """Labels to draw, with the family of which each is the best; the oracle has none."""
    real = rows[~rows["label"].str.contains("oracle")]
    evicts, selects = real["eviction"] != "none", real["selection"] != "all"
    families = {
        "eviction": real[evicts & ~selects],
        "selection": real[selects & ~evicts],
        "eviction with a selection": real[evicts & selects],
    }
    found = dict.fromkeys(rows.loc[rows["eviction"] == _ORACLE, "label"], "")
    for family, candidates in families.items():
        counts = candidates.groupby("label").size()
        whole = candidates[candidates["label"].isin(counts[counts == counts.max()].index)]
        if len(whole):
            log_kl = np.log(whole["kl_to_dense"].clip(lower=KL_FLOOR))
            found[str(log_kl.groupby(whole["label"]).mean().idxmin())] = family
    return found
