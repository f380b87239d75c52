"""Comparison of two runs, paired on the same samples."""

from collections.abc import Hashable
from pathlib import Path

import pandas as pd

from kvbench.config.errors import UserError
from kvbench.config.scales import lower_is_better
from kvbench.config.text import counted
from kvbench.report import significance, stats
from kvbench.report.clusters import Clusters
from kvbench.report.format import MB, Table, number
from kvbench.report.run import load
from kvbench.report.summary import METHOD, SAMPLE, TASK, gain, is_loss
from kvbench.report.tables import configurations

KEY = ["model", "protocol", *TASK, *METHOD]
#: KL of a sample that differs by no more is the same on another processor
KL_TOLERANCE = 1e-4
_VALUES = ["score", "kl_to_dense", "bytes_resident", "bytes_read_per_step"]


def compare(run_a: str | Path, run_b: str | Path) -> pd.DataFrame:
    """Rows in both runs: same model, task, protocol, method, parameters and budget.

    Uses only the samples in both runs. `delta` is B minus A, with interval, p-value and Holm-adjusted p-value;
    `same_output` is the share of samples with identical output tokens; `kl_delta` has an interval and a p-value, and
    `kl_largest` is the largest difference of a sample; `in_a` and `in_b` count the samples of all rows of each run.
    Samples are clusters, as in a summary. Holm's family is without dense, floor and covered rows.

    Raises:
        UserError: a run is missing or empty, or the runs have no row and sample in common.
    """
    sides = [_by_sample(run) for run in (run_a, run_b)]
    pairs = sides[0].merge(sides[1], on=[*KEY, *SAMPLE], suffixes=("_a", "_b"))
    if pairs.empty:
        raise UserError(
            f"run: {run_a} and {run_b} share no row (model, protocol, task, length, method, parameters, "
            "budget) with a common sample"
        )
    pairs["delta"] = pairs["score_b"] - pairs["score_a"]
    pairs["kl_delta"] = pairs["kl_to_dense_b"] - pairs["kl_to_dense_a"]
    pairs["same_output"] = (pairs["tokens_a"] == pairs["tokens_b"]).astype(float)
    frame = pd.DataFrame(
        [_row(dict(zip(KEY, key, strict=True)), group) for key, group in pairs.groupby(KEY, dropna=False)]
    )
    frame["in_a"], frame["in_b"] = map(len, sides)
    floor = frame.assign(score=frame[["score_a", "score_b"]].max(axis=1).where(frame["is_dense"]))
    frame["floor"] = (
        floor.groupby(["model", "protocol", *TASK], dropna=False)["score"].transform("max") < stats.FLOOR
    ) & ~is_loss(frame)
    covered = frame["budget_covers_prompt"] & (frame["n_different"] == 0)
    tested = ~(frame["is_dense"] | frame["floor"] | covered)
    frame["p_holm"] = significance.holm(frame["p_value"].where(tested))
    frame["verdict"] = [
        significance.verdict(
            *gain(row.metric, row.delta, row.ci_low, row.ci_high),
            row.p_value,
            row.p_holm,
            row.n,
            tested.sum(),
        )
        for row in frame.itertuples(index=False)
    ]
    changed = [f"{k} of {n} samples changed" for k, n in zip(frame["n_different"], frame["n"], strict=True)]
    frame.loc[covered, "verdict"] = "the budget covers the prompt"
    frame["verdict"] = frame["verdict"].mask(frame["floor"], [f"floor: {text}" for text in changed])
    frame["verdict"] = frame["verdict"].mask(frame["is_dense"], [f"reference: {text}" for text in changed])
    return frame


def _row(key: dict[Hashable, object], pairs: pd.DataFrame) -> dict[Hashable, object]:
    """One row of the comparison, from the pairs of a model, task, protocol, method and budget."""
    values = [f"{value}_{side}" for value in _VALUES for side in "ab"]
    first = pairs.iloc[0]
    names = {name: first[f"{name}_a"] for name in ("label", "task_label", "is_dense")}
    covered = bool(pairs["budget_covers_prompt_a"].all() and pairs["budget_covers_prompt_b"].all())
    means = {
        column: Clusters(pairs[column], pairs["cluster_a"]).mean
        for column in (*values, "delta", "same_output")
    }
    delta = Clusters(pairs["delta"], pairs["cluster_a"])
    loss = lower_is_better(key["metric"])
    low, high = (stats.kl_difference_interval if loss else stats.difference_interval)(delta)
    kl = Clusters(pairs["kl_delta"], pairs["cluster_a"])
    kl_low, kl_high = stats.kl_difference_interval(kl)
    of_kl = {
        "kl_delta": kl.mean,
        "kl_ci_low": kl_low,
        "kl_ci_high": kl_high,
        "kl_p_value": stats.kl_difference_p_value(kl),
        "kl_largest": pairs["kl_delta"].abs().max(),
    }
    counts = {"budget_covers_prompt": covered, "n": len(delta), "n_different": delta.different}
    tested = {"ci_low": low, "ci_high": high, "p_value": significance.difference_p_value(delta)}
    return key | names | counts | means | tested | of_kl


def comparison_text(frame: pd.DataFrame, run_a: str | Path, run_b: str | Path) -> str:
    """The result of `compare`: one line, then the rows that differ as Markdown, one table per model and protocol.

    A row differs where the score of a sample does, or its KL by more than `KL_TOLERANCE`.
    """
    differs = (frame["n_different"] > 0) | (frame["kl_largest"] > KL_TOLERANCE)
    lines = [_agreement(frame, run_a, run_b)]
    if not differs.any():
        return lines[0]
    header = ["task", "length", "method", "budget", "n", "score A", "score B", "B - A", "verdict"]
    header += ["same output %", "KL A", "KL B", "KL: B - A", "KL: p", "resident MB A", "resident MB B"]
    power = significance.power(int(frame["p_holm"].notna().sum()), int(frame["n"].max()))
    caption = (
        f"A = {run_a}, B = {run_b}. Rows that differ, on samples that both runs have; B minus A: mean [95 % interval: "
        f"{stats.DIFFERENCE_INTERVAL[stats.VERSION]}]; the interval is of the row alone, the "
        f"verdict after Holm's correction; dense, floor and covered rows are no comparisons. {power} "
        f"KL: paired differences, bootstrap-t, of the row alone; - for fewer than {stats.FEWEST_FOR_KL} samples."
    )
    for (model, protocol), group in frame[differs].groupby(["model", "protocol"]):
        rows = [
            [task, str(length), label, budget, *_numbers(config.iloc[0])]
            for (length, task), panel in group.groupby(["length", "task_label"])
            for label, budget, config in configurations(panel)
        ]
        lines.append(Table(f"{model}, {protocol}", caption, header, rows).markdown())
    return "\n\n".join(lines)


def _agreement(frame: pd.DataFrame, run_a: str | Path, run_b: str | Path) -> str:
    """How many scores are equal and how far KL differs, in one line."""
    n = int(frame["n"].sum())
    equal = n - int(frame["n_different"].sum())
    largest = frame["kl_largest"].max()
    kl = "no KL in both" if pd.isna(largest) else f"KL within {KL_TOLERANCE:g}"
    if largest > KL_TOLERANCE:
        over = int((frame["kl_largest"] > KL_TOLERANCE).sum())
        rows = counted(len(frame), "row")
        kl = f"KL differs by more than {KL_TOLERANCE:g} in {over} of {rows}, at most {largest:.2g}"
    counts = [int(frame[f"in_{side}"].iloc[0]) for side in "ab"]
    others = f" (A has {counts[0]}, B {counts[1]})" if set(counts) != {n} else ""
    return f"A = {run_a}, B = {run_b}: scores equal {equal} of {n}{others}, {kl}"


def _numbers(row: pd.Series) -> list[str]:
    low, high = number(row["ci_low"], "+.2f"), number(row["ci_high"], "+.2f")
    return [
        str(row["n"]),
        *(number(row[f"score_{side}"], ".2f") for side in "ab"),
        f"{row['delta']:+.2f} [{low}, {high}]",
        row["verdict"],
        number(100 * row["same_output"], ".0f"),
        *(number(row[f"kl_to_dense_{side}"], ".2g") for side in "ab"),
        f"{number(row['kl_delta'], '+.2g')} [{number(row['kl_ci_low'], '+.2g')}, {number(row['kl_ci_high'], '+.2g')}]",
        number(row["kl_p_value"], ".2g"),
        *(number(row[f"bytes_resident_{side}"] / MB, ".3g") for side in "ab"),
    ]


def _by_sample(run: str | Path) -> pd.DataFrame:
    """Scored cells of a run, averaged per row and sample."""
    cells = load(run).prepared
    cells = cells[cells["score"].notna()]
    first = ["label", "task_label", "is_dense", "output_ids", "cluster", "budget_covers_prompt"]
    columns = dict.fromkeys(_VALUES, "mean") | dict.fromkeys(first, "first")
    by_sample = cells.groupby([*KEY, *SAMPLE], dropna=False).agg(columns).reset_index()
    return by_sample.rename(columns={"output_ids": "tokens"})
