"""report.html of a run of cells: explorer, answers, tables, figures, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

import kvbench
from kvbench.config.errors import UserError
from kvbench.report import caveats, significance, style
from kvbench.report.format import MB, Table, number
from kvbench.report.page import Column, Example, Explorer, Page, Picture
from kvbench.report.run import Run
from kvbench.report.summary import ROW, SETTING, budget_key, pooled
from kvbench.report.tables import GUIDE, all_tables, configurations
from kvbench.runs.told import listed

_EXAMPLES = 4
_OUTPUT = 400  # maximum characters of an output
_KL_FLOOR = 1e-6

_COLUMNS = {
    "label": Column("method"),
    "family": Column("family"),
    "model": Column("model"),
    "task": Column("task"),
    "length": Column("length", suffix=" tokens"),
    "protocol": Column("protocol"),
    "budget": Column("budget"),
    "batch": Column("batch"),
    "kept": Column("tokens kept", log=True),
    "resident": Column("KV resident, MB", log=True),
    "resident_share": Column("KV resident, % of dense", log=True),
    "read": Column("KV read per step, MB", log=True),
    "read_share": Column("KV read per step, % of dense", log=True),
    "score": Column("score", range=(0, 1)),
    "score_low": Column("score, lower bound"),
    "score_high": Column("score, upper bound"),
    "n": Column("samples"),
    "kl": Column("KL from dense, nats", log=True, floor=_KL_FLOOR),
    "kl_low": Column("KL, lower bound"),
    "kl_high": Column("KL, upper bound"),
    "difference": Column("score minus dense's"),
    "difference_low": Column("difference, lower bound"),
    "difference_high": Column("difference, upper bound"),
    "verdict": Column("verdict"),
    "decode": Column("decode, ms per token", log=True),
    "decode_low": Column("decode, 20th percentile"),
    "decode_high": Column("decode, 80th percentile"),
    "speedup": Column("speed-up of a step"),
    "prefill_s": Column("prefill, s"),
    "peak": Column("peak memory, MB", log=True),
    "cell": Column("first cell"),
}
_INTERVALS = {
    "score": ("score_low", "score_high"),
    "kl": ("kl_low", "kl_high"),
    "difference": ("difference_low", "difference_high"),
    "decode": ("decode_low", "decode_high"),
}
_TABLE = [
    *("label", "budget", "task", "score", "kl", "resident_share", "read_share", "difference", "n", "verdict"),
    *("family", "model", "protocol", "length", "kept", "resident", "read"),
]
_HOVER = [
    *("label", "budget", "task", "score", "kl", "difference", "verdict"),
    *("kept", "resident", "read", "n", "cell"),
]
_TIMES = ("decode", "speedup", "resident", "peak")


def page(run: Run, figures: list[Picture]) -> str:
    """The report as one HTML document."""
    config = run.path / "config.yaml"
    facts = caveats.facts(run.prepared)
    lead = (
        f"{facts['model']}, {facts['dtype']} on {facts['device']}, {facts['cells']} cells, kvbench "
        f"{kvbench.__version__}. Every number on this page was measured by this run."
    )
    answer, judged = _answer(run)
    return Page(
        title=run.name,
        lead=lead,
        answer=answer,
        notes=run.notes(),
        failures=listed(run.failures, run.path),
        explorers=explorers(run.summary(), run.prepared),
        examples=examples(run.prepared),
        tables=[*judged, *all_tables(run.summary(), run.failures), *run.further_tables()],
        guide=GUIDE,
        pictures=figures,
        facts=facts,
        config=config.read_text(encoding="utf-8") if config.exists() else "",
    ).html()


def _answer(run: Run) -> tuple[list[str | Table], list[Table]]:
    """The box at the top, and the tables behind it; none for a run without scores beside dense's."""
    try:
        best = run.best()
    except UserError:
        return [], []
    overview = best.overview()
    # of several settings or lengths the sentences are enough for a box
    return [*best.answer(), *(overview if len(overview) <= 2 else [])], best.tables()


def explorers(summary: pd.DataFrame, cells: pd.DataFrame | None = None) -> list[Explorer]:
    """Scores of a run against bytes, and times where methods ran one at a time; seeds pooled.

    Args:
        summary: rows of summary.csv.
        cells: the cells behind them, prepared, for their ids.
    """
    rows = pooled(summary)
    if cells is not None:
        first = cells.groupby(ROW, dropna=False)["cell"].min().reset_index()
        rows = rows.merge(first, on=ROW, how="left")
    # dense first: the script draws the reference below the others
    rows = rows.sort_values(["is_dense", "label"], ascending=[False, True], kind="stable")
    looks = style.styles(rows["label"])
    plain = [_row(row) for row in rows.to_dict("records")]
    found = []
    if scored := [row for row in plain if pd.notna(row["score"])]:
        with_kl = any(pd.notna(row["kl"]) for row in scored)
        budgets = sorted({row["budget"] for row in scored} - {""}, key=budget_key)
        found.append(
            Explorer(
                caption="A point is a method at a budget, mean over samples; bars are 95 % intervals, the band is "
                "dense's. Point at one for its numbers; kvbench explain opens the cell that it names.",
                rows=scored,
                columns=_COLUMNS,
                series="label",
                styles=looks,
                table=_TABLE,
                x=["resident_share", "read_share", "resident", "read", "kept"],
                y=["score", *(["kl"] if with_kl else []), "difference"],
                intervals=_INTERVALS,
                panel=["task", "length"],
                filters=["model", "protocol", "task", "length", "budget", "family"],
                loose=["budget", "family"],
                hover=_HOVER,
                folded=["family", "model", "protocol", "length", "kept", "resident", "read"],
                marks={"score": "mark"},
                lines=len(budgets) > 1,
            )
        )
    if timed := [row for row in plain if row["timing"] == "isolated"]:
        found.append(
            Explorer(
                title="Times",
                caption="One method at a time, after warm-up: medians, bars from the 20th to the 80th percentile.",
                rows=timed,
                columns=_COLUMNS,
                series="label",
                styles=looks,
                table=["label", "budget", "length", "batch", *_TIMES, "prefill_s"],
                x=["length", "batch", "resident"],
                y=["decode", "speedup", "peak"],
                intervals=_INTERVALS,
                panel=["batch"],
                filters=["model", "length", "batch", "budget"],
                loose=["budget"],
                hover=["label", "budget", "length", "batch", *_TIMES, "cell"],
            )
        )
    return found


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A summary row with the columns of the explorer."""
    percent = {name: 100 * row[f"bytes_{name}_share"] for name in ("resident", "read")}
    worse, better = row["p_holm"] < significance.ALPHA, row["delta_vs_dense"] > 0
    return {
        **{name: row[name] for name in ("label", "model", "length", "protocol", "score", "n", "verdict")},
        **{name: row[name] for name in ("batch", "speedup", "prefill_s", "timing", "run")},
        "reference": bool(row["is_dense"]),
        "family": family(row),
        "task": row["task_label"],
        "budget": _budget(row["budget_requested"]),
        "kept": row["kept_tokens"],
        "resident": row["bytes_resident"] / MB,
        "resident_share": percent["resident"],
        "read": row["bytes_read_per_step"] / MB,
        "read_share": percent["read"],
        "score_low": row["ci_low"],
        "score_high": row["ci_high"],
        "kl": row["kl_to_dense"],
        "kl_low": row["kl_ci_low"],
        "kl_high": row["kl_ci_high"],
        "difference": row["delta_vs_dense"],
        "difference_low": row["delta_ci_low"],
        "difference_high": row["delta_ci_high"],
        "decode": row["decode_ms_per_token"],
        "decode_low": row["decode_ms_p20"],
        "decode_high": row["decode_ms_p80"],
        "peak": row["peak_bytes"] / MB,
        "mark": ("better" if better else "worse") if worse else "",
        "cell": row.get("cell"),
    }


def family(row: Mapping[str, Any]) -> str:
    """What a method is made of: eviction, selection, both, format, or dense."""
    evicts, selects = row["eviction"] != "none", row["selection"] != "all"
    if evicts and selects:
        return "eviction and selection"
    if evicts or selects:
        return "eviction" if evicts else "selection"
    return "dense" if row["format"] == "native" else "format"


def _budget(requested: Any) -> str:
    """A budget as it was requested; a column of summary.csv may have been read as numbers."""
    if pd.isna(requested):
        return ""
    return f"{requested:g}" if isinstance(requested, float) else str(requested)


def examples(cells: pd.DataFrame) -> list[Example]:
    """The sample with the largest disagreement between methods, per setting and task; up to four."""
    hidden = [bool(meta.get("hidden")) for meta in cells["meta"]]
    scored = cells[cells["score"].notna() & ~pd.Series(hidden, cells.index, dtype=bool)]
    found = []
    for (*setting, task, length), group in scored.groupby([*SETTING, "task_label", "length"], dropna=False):
        spread = group.groupby(["seed", "sample"])["score"].std().fillna(0)
        seed, sample = spread.idxmax()
        rows = []
        for label, budget, config in configurations(
            group[(group["seed"] == seed) & (group["sample"] == sample)]
        ):
            row = config.iloc[0]
            output = str(row["output"])
            excerpt = (
                output if len(output) <= _OUTPUT else f"{output[:_OUTPUT]} ... ({len(output)} characters)"
            )
            rows.append(
                [label, budget, number(row["score"], ".2f"), number(row["kl_to_dense"], ".2g"), excerpt]
            )
        gold = ", ".join(
            map(str, group[(group["seed"] == seed) & (group["sample"] == sample)]["gold"].iloc[0])
        )
        title = f"{task}, {length} tokens, {setting[SETTING.index('protocol')]}, sample {sample}, seed {seed}"
        found.append(Example(title, gold, rows))
    return found[:_EXAMPLES]
