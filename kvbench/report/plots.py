"""The kinds of figures, and the rows that each shows."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from kvbench.config.files import write
from kvbench.config.text import file_name
from kvbench.report import (
    answer,
    budgets,
    compositions,
    heatmap,
    oracle,
    pareto,
    ranking,
    style,
    times,
    turns,
)
from kvbench.report.summary import SETTING, is_loss


@dataclass(frozen=True)
class Kind:
    """A kind of figure.

    Attributes:
        draw: draws the rows of one setting.
        caption: caption in the report.
        wanted: mask of the rows that it shows.
        by: columns with one figure per value, in addition to the setting.
        from_cells: drawn from cells instead of summary rows.
    """

    draw: Callable[[pd.DataFrame], style.Figure]
    caption: str
    wanted: Callable[[pd.DataFrame], pd.Series]
    by: tuple[str, ...] = ()
    from_cells: bool = False


def _scored(rows: pd.DataFrame) -> pd.Series:
    return rows["score"].notna()


def _with_kl(rows: pd.DataFrame) -> pd.Series:
    return rows["kl_to_dense"].notna() & rows["score"].notna()


def _dropped(rows: pd.DataFrame) -> pd.Series:
    # summaries of earlier versions have no such column
    if "drops" not in rows or not rows["drops"].gt(0).any():
        return pd.Series(False, rows.index)
    return rows["held_bytes_mean"].notna() & rows["score"].notna()


def _isolated(rows: pd.DataFrame) -> pd.Series:
    return rows["timing"] == "isolated"


KINDS = {
    "answer": Kind(
        answer.scores,
        "Score of each method at one budget, and the share of dense's KV memory that it takes.",
        answer.few,
    ),
    "methods": Kind(
        ranking.methods,
        "Methods by task at one budget, and the mean score against the bytes of every budget.",
        ranking.many,
    ),
    "score_vs_resident": Kind(
        partial(pareto.score, bytes_column="bytes_resident"),
        "Score against the measured size of the KV cache after compression.",
        _scored,
    ),
    "score_vs_read": Kind(
        partial(pareto.score, bytes_column="bytes_read_per_step"),
        "Score against the KV bytes that a decode step reads, measured.",
        _scored,
    ),
    "kl_vs_resident": Kind(
        partial(pareto.kl, bytes_column="bytes_resident"),
        "KL of the next-token distribution from dense's against the measured size of the KV cache.",
        _with_kl,
    ),
    "kl_vs_read": Kind(
        partial(pareto.kl, bytes_column="bytes_read_per_step"),
        "KL of the next-token distribution from dense's against the KV bytes that a decode step reads.",
        _with_kl,
    ),
    "score_vs_held": Kind(
        partial(pareto.score, bytes_column="held_bytes_mean"),
        "Score against the KV bytes held while decoding, mean over steps: equal means are comparable, budgets are not.",
        _dropped,
    ),
    "kl_vs_held": Kind(
        partial(pareto.kl, bytes_column="held_bytes_mean"),
        "KL of the next-token distribution from dense's against the KV bytes held while decoding, mean over steps.",
        lambda rows: _dropped(rows) & rows["kl_to_dense"].notna(),
    ),
    "by_budget": Kind(budgets.by_budget, "Score and KL against the nominal budget.", budgets.several),
    "oracle": Kind(
        oracle.distance,
        "The best methods against an eviction that knows what will be asked.",
        oracle.with_oracle,
    ),
    "compositions": Kind(
        compositions.pairs,
        "Evictions with selections behind them, and each alone: score, and KL from dense.",
        compositions.several,
    ),
    "needle": Kind(
        heatmap.needle,
        "Score by depth of the needle and length.",
        heatmap.has_depth,
        ("task_label",),
        from_cells=True,
    ),
    "turns": Kind(
        turns.by_turn,
        "Score by turn of a conversation.",
        turns.has_turn,
        ("task_label",),
        from_cells=True,
    ),
    "stages": Kind(
        times.stages, "Where the time of a prompt goes.", lambda rows: rows["decode_s"].notna(), ("timing",)
    ),
    "decode_by_length": Kind(times.decode_by_length, "Time of a decode step against length.", _isolated),
    "decode_by_batch": Kind(times.decode_by_batch, "Time of a decode step against batch size.", _isolated),
}


def figures(kind: str, source: pd.DataFrame) -> Iterator[tuple[str, style.Figure]]:
    """All figures of a kind with their file names (no suffix), one per setting.

    Args:
        kind: a key of `KINDS`.
        source: prepared cells where the kind is drawn `from_cells`, otherwise summary rows with seeds pooled.
    """
    spec = KINDS[kind]
    # losses without bounds are in the tables; axes of scores end at 1
    source = source[~is_loss(source)]
    if source.empty:
        return
    source = source[spec.wanted(source)]
    seen: set[str] = set()
    for _, group in source.groupby([*SETTING, *spec.by], dropna=False):
        name = _slug([kind, *(group[column].iloc[0] for column in ("model", "dtype", "protocol", *spec.by))])
        while name in seen:  # the same name with other weights, another attention backend ...
            name += "-2"
        seen.add(name)
        with mpl.rc_context(style.SETTINGS):
            figure = spec.draw(group)
        figure.heading = spec.caption
        yield name, figure


def save(figure: style.Figure, folder: Path, name: str, heading: str = "") -> list[Path]:
    """Writes NAME.svg and NAME.png.

    Args:
        figure: what to write.
        folder: created if missing.
        name: of the files, without suffix.
        heading: title of the SVG; without it the figure's own.
    """
    figure.heading = heading or figure.heading
    paths = [folder / f"{file_name(name)}.{form}" for form in ("svg", "png")]
    for path in paths:
        write(path, style.render(figure, path.suffix[1:]))
    return paths


def _slug(parts: list[object]) -> str:
    return ".".join(re.sub(r"[^A-Za-z0-9_-]+", "-", str(part)) for part in parts)
