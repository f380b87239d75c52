"""From cells to summary rows: one per model, task, length, protocol, method, parameters, budget and seed."""

import json

import numpy as np
import pandas as pd

from kvbench.config.errors import UserError
from kvbench.config.scales import lower_is_better
from kvbench.report import clusters, significance, stats
from kvbench.report.clusters import Clusters
from kvbench.runs import fields

COLUMNS = [column.name for column in fields.COLUMNS]
# what summaries of earlier versions do not say: what was held while decoding, and how steps ran
_NEWER = (
    "n_not_compressed held_mean held_peak held_end held_bytes_mean held_bytes_peak drops first_drop after_first_drop "
    "step"
).split()
EARLIER = [name for name in COLUMNS if name not in _NEWER]

# cells are comparable only if these are equal
SETTING = ["model", "model_fingerprint", "dtype", "attention", "kernels", "protocol"]
TASK = ["length", "task", "task_version", "wording", "metric", "max_new_tokens"]
METHOD = ["method", "eviction", "selection", "format", "params", "budget_requested"]
TIMING = ["timing", "batch"]
ROW = SETTING + TASK + METHOD + TIMING
DENSE = ["none", "all", "native"]  # eviction, selection, format
# a table, and so a family of tests
TABLE = [*SETTING, "length"]
SAMPLE = ["seed", "sample", "sample_hash"]
ALL_SEEDS = "all"

_MEANS = [column.name for column in fields.COLUMNS if column.over == "mean"]
_MEDIANS = [column.name for column in fields.COLUMNS if column.over == "median"]
_NUMBERS = [*_MEANS, *_MEDIANS, "score", "kl_to_dense"]
_OTHERS = "compressed device step commit versions time output output_ids gold meta budget_covers_prompt stop".split()
_FROM_DENSE = ["score", "bytes_resident", "bytes_read_per_step", "decode_ms_per_token"]


def summarise(cells: pd.DataFrame, run: str) -> pd.DataFrame:
    """Summary rows of a run, with the columns `COLUMNS`.

    One row per seed; when there are several seeds also one row with seed "all" that pools them, clustered by
    sample. Means are over samples, times are medians over cells.

    Args:
        cells: from `prepare`.
        run: name of the run.
    """
    levels = [_rows(cells, [*ROW, "seed"])]
    if cells["seed"].nunique() > 1:
        levels.append(_rows(cells, ROW).assign(seed=ALL_SEEDS))
    rows = pd.concat([_judged(level) for level in levels if len(level)]).assign(run=run, n_failed=0)
    order = rows.assign(
        not_dense=~rows["is_dense"],
        budget=rows["budget_requested"].map(budget_key),
        pooled=rows["seed"] == ALL_SEEDS,
        seed_order=pd.to_numeric(rows["seed"], errors="coerce"),
    ).sort_values(
        [*SETTING, *TASK, "timing", "batch", "not_dense", "label", "budget", "pooled", "seed_order"]
    )
    return order[COLUMNS].reset_index(drop=True)


def pooled(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows with seeds pooled, or all rows if there is one seed."""
    all_seeds = summary["seed"] == ALL_SEEDS
    return summary[all_seeds] if all_seeds.any() else summary


def prepare(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells with every column that the report needs, and dense's values on the same sample.

    Adds `label` and `task_label` (names that tell methods and tasks apart), `is_dense`, `idle` (cells that nothing
    compressed, whose numbers are left out), `cluster` (see `clusters.names`), `decode_s`, `difference` (score minus
    dense's on the same sample), `dense_<column>` and `bytes_..._share` (of dense's); NaN where dense has no cell for
    the sample. `params` becomes JSON text.

    Raises:
        UserError: a score that is not between 0 and 1, or a loss below 0.
    """
    # efficiency rows have fewer fields
    needed = [*ROW, *SAMPLE, *_NUMBERS, *_OTHERS]
    cells = cells.reindex(columns=[*cells.columns, *(name for name in needed if name not in cells)])
    cells = cells.sort_values("cell", ignore_index=True)  # independent of the order of the files
    # rows of earlier versions have "1 threads"
    cells["device"] = cells["device"].replace(r"\b1 threads$", "1 thread", regex=True)
    cells["meta"] = [meta if isinstance(meta, dict) else {} for meta in cells["meta"]]
    cells[_NUMBERS] = cells[_NUMBERS].apply(pd.to_numeric)
    most = np.where(is_loss(cells), np.inf, 1)
    for _, cell in cells[(cells["score"] < 0) | (cells["score"] > most)].head(1).iterrows():
        raise UserError(f"score: {cell['score']:g} of task {cell['task']}, allowed: 0 to 1")
    # null for a user's own prompts; an empty column would have another type in a merge
    cells["wording"] = cells["wording"].fillna("-").astype(str)
    cells["is_dense"] = (cells[["eviction", "selection", "format"]] == DENSE).all(axis=1)
    # equal to dense because nothing was done, which says nothing about the method; a budget that covers all is told
    # apart; rows of earlier versions do not say
    covered = cells["budget_covers_prompt"].fillna(False).astype(bool)
    cells["idle"] = cells["compressed"].eq(False) & ~cells["is_dense"] & ~covered
    cells.loc[cells["idle"], ["score", "kl_to_dense", *_MEANS]] = np.nan
    roles = cells[["eviction", "selection", "format"]].to_dict("records")
    cells["label"] = distinguish(
        cells["method"], [role | _flat(params) for role, params in zip(roles, cells["params"], strict=True)]
    )
    cells.loc[cells["is_dense"], "label"] = "dense"
    details = cells[["task_version", "wording", "metric", "max_new_tokens"]].to_dict("records")
    cells["task_label"] = distinguish(cells["task"], details)
    cells["params"] = [json.dumps(params, sort_keys=True) for params in cells["params"]]
    cells["cluster"] = clusters.names(cells)
    cells["tokens"] = [
        len(ids) if isinstance(ids, list) else limit
        for ids, limit in zip(cells["output_ids"], cells["max_new_tokens"], strict=True)
    ]
    pair = [*SETTING, *TASK, *TIMING, *SAMPLE]
    # the cells of a prompt are one batch, which steps until the last of them stops
    steps = cells.groupby(pair, dropna=False)["tokens"].transform("max")
    cells["decode_s"] = cells["decode_ms_per_token"] * steps / 1000
    dense = cells[cells["is_dense"]].groupby(pair, dropna=False)[_FROM_DENSE].mean()
    cells = cells.merge(dense.add_prefix("dense_").reset_index(), on=pair, how="left")
    cells["difference"] = cells["score"] - cells["dense_score"]
    cells["bytes_resident_share"] = cells["bytes_resident"] / cells["dense_bytes_resident"]
    cells["bytes_read_share"] = cells["bytes_read_per_step"] / cells["dense_bytes_read_per_step"]
    return cells


def distinguish(names: pd.Series, settings: list[dict[str, object]]) -> list[str]:
    """Names with the settings appended that differ between entries of the same name: `chunkkv (chunk=20)`."""
    coded = [json.dumps(setting, sort_keys=True) for setting in settings]
    variants: dict[str, dict[str, dict[str, object]]] = {}
    for name, code, setting in zip(names, coded, settings, strict=True):
        variants.setdefault(name, {}).setdefault(code, setting)
    labels: dict[tuple[str, str], str] = {}
    for name, found in variants.items():
        keys = dict.fromkeys(key for setting in found.values() for key in setting)
        differing = [key for key in keys if len({str(setting.get(key)) for setting in found.values()}) > 1]
        for code, setting in found.items():
            extra = ", ".join(f"{key}={setting[key]}" for key in differing if key in setting)
            labels[name, code] = f"{name} ({extra})" if extra else name
    return [labels[key] for key in zip(names, coded, strict=True)]


def joined(values: pd.Series) -> str:
    """The distinct values as `cpu + cuda:0`; joined values are split first."""
    return " + ".join(sorted({part for value in values.dropna() for part in str(value).split(" + ")}))


def budget_key(budget: str) -> tuple[bool, float, str]:
    """Sort key of a requested budget, `256` or `0.1x`: none, then tokens, then ratios."""
    return budget.endswith("x"), float(budget.rstrip("x") or -1), budget


def budget_tokens(cells: pd.DataFrame) -> pd.Series:
    """A budget in tokens per cell, for plots: the requested tokens, else the row's mean of kept tokens.

    Kept tokens stand in for ratios, and for dense and formats, which take no budget. The budget is nominal: methods at
    the same one keep and read different amounts, see `kept_tokens` and `bytes_read_per_step`.

    Args:
        cells: as recorded.
    """
    row = [
        name
        for name in ("task", "length", "protocol", "method", "budget_requested", "batch")
        if name in cells
    ]
    kept = cells.groupby(row, dropna=False)["kept_tokens"].transform("mean")
    return pd.to_numeric(cells["budget_requested"], errors="coerce").fillna(kept)


def _rows(cells: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """One row per distinct key, without the comparison over a table."""
    cells = cells.assign(row=cells.groupby(key, dropna=False, sort=False).ngroup())
    groups = cells.groupby("row")
    rows = cells.drop_duplicates("row").set_index("row")[[*key, "label", "task_label", "is_dense"]]
    means, medians = groups[_MEANS].mean(), groups[_MEDIANS].median()
    rows = rows.join(means).join(medians).join(pd.DataFrame({"n_cells": groups.size()}))
    speedup = groups["dense_decode_ms_per_token"].median() / rows["decode_ms_per_token"]
    rows["speedup"] = speedup.where(rows["timing"] == "isolated")
    rows["budget_covers_prompt"] = groups["budget_covers_prompt"].all()
    for column in ("device", "step"):
        rows[column] = groups[column].agg(joined)
    rows["n_not_compressed"] = groups["idle"].sum()

    known = groups["stop"].agg(lambda stop: stop.notna().any())
    rows["n_cut"] = groups["stop"].agg(lambda stop: (stop == "length").sum()).where(known)
    statistics = {row: _statistics(group) for row, group in groups}
    return rows.join(pd.DataFrame.from_dict(statistics, orient="index"))


def _statistics(cells: pd.DataFrame) -> dict[str, float]:
    """Means over clusters, intervals and the test of one row's cells."""
    paired = cells[cells["difference"].notna()]
    scores, kl = (Clusters(cells[column], cells["cluster"]) for column in ("score", "kl_to_dense"))
    differences, dense = (
        Clusters(paired[column], paired["cluster"]) for column in ("difference", "dense_score")
    )
    loss = lower_is_better(cells["metric"].iloc[0])
    # without bounds, as KL
    ci_low, ci_high = stats.kl_interval(scores) if loss else stats.score_interval(scores)
    delta_ci_low, delta_ci_high = (
        stats.kl_difference_interval(differences) if loss else stats.difference_interval(differences)
    )
    kl_ci_low, kl_ci_high = stats.kl_interval(kl)
    return {
        "stats_version": stats.VERSION,
        "score": scores.mean,
        "ci_low": ci_low,
        "ci_high": ci_high,
        "n": len(scores),
        "n_pairs": len(differences),
        "n_different": differences.different,
        "dense_score": dense.mean,
        "delta_vs_dense": differences.mean,
        "delta_ci_low": delta_ci_low,
        "delta_ci_high": delta_ci_high,
        "p_value": significance.difference_p_value(differences),
        "kl_to_dense": kl.mean,
        "kl_ci_low": kl_ci_low,
        "kl_ci_high": kl_ci_high,
    }


def _judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Adds `floor`, `p_holm` and `verdict`; Holm's family is a table without its dense, floor and covered rows."""
    rows = rows.copy()
    seed = ["seed"] if "seed" in rows else []
    is_dense = rows["is_dense"]
    rows.loc[is_dense, ["delta_vs_dense", "delta_ci_low", "delta_ci_high", "p_value"]] = np.nan
    rows.loc[is_dense, "n_pairs"] = 0
    dense_score = rows.assign(dense=rows["score"].where(is_dense)).groupby(
        [*SETTING, *TASK, *seed], dropna=False
    )
    rows["floor"] = (dense_score["dense"].transform("max") < stats.FLOOR) & ~is_loss(rows)
    covered = rows["budget_covers_prompt"] & (rows["n_pairs"] > 0) & (rows["n_different"] == 0)
    rows["p_value"] = rows["p_value"].mask(rows["floor"])
    rows["p_holm"] = rows["p_value"].mask(covered)
    families = rows.groupby([*TABLE, *seed], dropna=False)["p_holm"]
    comparisons = families.transform("count")
    rows["p_holm"] = families.transform(significance.holm)
    rows["verdict"] = [
        significance.verdict(
            *gain(row.metric, row.delta_vs_dense, row.delta_ci_low, row.delta_ci_high),
            row.p_value,
            row.p_holm,
            row.n_pairs,
            family,
        )
        for row, family in zip(rows.itertuples(index=False), comparisons, strict=True)
    ]
    rows.loc[covered, "verdict"] = "equal to dense: the budget covers the prompt"
    rows.loc[is_dense, "verdict"] = "reference"
    rows.loc[rows["floor"], "verdict"] = "floor"
    rows.loc[rows["score"].isna(), "verdict"] = ""
    rows.loc[rows["n_not_compressed"] == rows["n_cells"], "verdict"] = "never compressed"
    return rows


def is_loss(rows: pd.DataFrame) -> pd.Series:
    """Which rows have a metric that is better when it is lower."""
    return pd.Series([lower_is_better(name) for name in rows["metric"]], rows.index, dtype=bool)


def gain(metric: str, delta: float, low: float, high: float) -> tuple[float, tuple[float, float]]:
    """A difference and its interval so that more is better."""
    return (-delta, (-high, -low)) if lower_is_better(metric) else (delta, (low, high))


def _flat(params: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in params.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
