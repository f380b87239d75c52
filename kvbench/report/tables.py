"""The tables of a run."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd

from kvbench.config.text import counted
from kvbench.report import failures, significance, stats
from kvbench.report.format import BETTER, MB, MISSING, WORSE, Table, escaped, number
from kvbench.report.summary import ALL_SEEDS, SETTING, TABLE, budget_key, joined, pooled
from kvbench.runs.store import Record

GUIDE = (
    "Everything in these tables is measured: kept tokens (per layer and KV head, mean), bytes resident "
    "(after compression, page bounds and indices included), bytes read per decode step (K, V and whatever "
    "the selection reads). 1 MB = 10^6 bytes. The requested budget is only a name.",
    "KL: divergence of the method's next-token distribution from dense's in nats, mean over dense's own "
    "continuation. It sees changes that a score does not.",
    "Comparisons are paired: same samples, same seeds. p: exact McNemar for 0/1 scores, otherwise sign-flip "
    "permutation.",
    f"floor: dense is below {stats.FLOOR}; such a task says nothing about a method and is not compared.",
    "Several seeds of one sample are averaged first and count as one sample, as do the turns of a conversation. "
    "Prompts in the same filler text are separate samples; intervals are about further questions in that filler.",
    "Marks and intervals answer two questions. A mark: are there more losses than gains, by an exact test that is "
    "corrected for the number of comparisons? An interval: where may the mean of all such samples lie, for this row "
    "alone, with allowance for rare changes that n samples miss? Where they disagree the verdict says so.",
    "A difference that is not detectable is not a proof of equality: look at its interval.",
    "cut: answers that ended at the token limit, not by themselves, of all answers; compare a method's with dense's.",
)


def all_tables(summary: pd.DataFrame, failed: Sequence[Record] = ()) -> list[Table]:
    """Scores and differences per (setting, length), then amortised times, then isolated ones, then failures.

    Seeds are pooled; protocols, models, dtypes and kinds of timing have tables of their own.
    """
    rows = pooled(summary)
    tables: list[Table] = []
    scored = rows[rows["score"].notna()]
    for _, group in scored.groupby(TABLE, dropna=False):
        if group["is_dense"].all():
            tables.append(_dense_scores(group))
        else:
            tables += [_scores(group), _differences(group)]
    for _, group in scored[scored["timing"] == "amortised"].groupby(SETTING, dropna=False):
        tables.append(_amortised(group))
    for _, group in rows[rows["timing"] == "isolated"].groupby(SETTING, dropna=False):
        tables.append(_isolated(group))
    if (of_failures := failures.table(summary, failed)) is not None:
        tables.append(of_failures)
    return tables


def markdown(
    summary: pd.DataFrame,
    title: str,
    notes: list[str],
    failed: Sequence[Record] = (),
    more: Sequence[Table] = (),
) -> str:
    """The content of table.md: caveats, tables, and how to read them.

    Args:
        summary: see `summary.summarise`.
        title: a heading.
        notes: caveats.
        failed: records of failed cells.
        more: tables behind the others.
    """
    lines = [f"# {escaped(title)}", ""]
    lines += [*(f"- **{escaped(note)}**" for note in notes), ""] if notes else []
    lines += [table.markdown() for table in (*all_tables(summary, failed), *more)]
    lines += ["## How to read", "", *(f"- {escaped(line)}" for line in GUIDE), ""]
    return "\n".join(lines)


def _dense_scores(group: pd.DataFrame) -> Table:
    """One row per task of a dense-only run."""
    rows = [
        [row["task_label"], _score(row)[0], str(row["n"]), _cut(group.loc[[index]])]
        for index, row in group.iterrows()
    ]
    caption = f"{_setting(group)}. Dense only. Mean score [{_interval(group, stats.MEAN_INTERVAL)}]."
    return Table(f"Scores: {_name(group)}", caption, ["task", "score", "n", "cut"], sorted(rows))


def _scores(group: pd.DataFrame) -> Table:
    tasks = sorted(group["task_label"].unique())
    with_kl = group["kl_to_dense"].notna().any()
    width = 2 if with_kl else 1
    header = ["method", "budget", "kept tokens", "resident MB", "resident % of dense"]
    header += ["read MB/step", "read % of dense", "cut"]
    for task in tasks:
        header += [task, "KL (nats)"][:width]
    rows = []
    for label, budget, config in configurations(group):
        row = [label, budget, number(config["kept_tokens"].mean(), ".0f")]
        for name in ("resident", "read"):
            amount = config["bytes_resident" if name == "resident" else "bytes_read_per_step"].mean()
            row += [number(amount / MB, ".3g"), number(100 * config[f"bytes_{name}_share"].mean(), ".3g")]
        row.append(_cut(config))
        for task in tasks:
            row += _cells(config[config["task_label"] == task], _score, width=2)[:width]
        rows.append(row)
    caption = (
        f"{_setting(group)}. {_samples(group)}. Mean score [{_interval(group, stats.MEAN_INTERVAL)}]. "
        f"{WORSE} worse, {BETTER} better than dense on the same samples. {_power(group)}"
    )
    return Table(f"Scores: {_name(group)}", caption, header, rows)


def _differences(group: pd.DataFrame) -> Table:
    tasks = sorted(group["task_label"].unique())
    header = ["method", "budget"]
    for task in tasks:
        header += [f"{task}: difference", "p", "p (Holm)", "verdict"]
    rows = []
    for label, budget, config in configurations(group[~group["is_dense"]]):
        row = [label, budget]
        for task in tasks:
            row += _cells(config[config["task_label"] == task], _difference, width=4)
        rows.append(row)
    caption = (
        f"{_setting(group)}. {_samples(group)}. Score minus dense's on the same samples: mean "
        f"[{_interval(group, stats.DIFFERENCE_INTERVAL)}, of the row alone], and the number of samples where there are "
        f"fewer than scored ones. Verdicts go by p after Holm's correction. {_power(group)}"
    )
    return Table(f"Differences from dense: {_name(group)}", caption, header, rows)


def _amortised(group: pd.DataFrame) -> Table:
    rows = [
        [str(length), task, f"{row['prompts']:.0f}", f"{row['cells']:.3g}"]
        + [number(row[stage], ".3g") for stage in ("prefill_s", "compress_s", "decode_s")]
        for (length, task), row in stage_seconds(group).iterrows()
    ]
    caption = (
        f"{_setting(group)}. timing = amortised: seconds per prompt. Its cells share one prefill and one "
        "decode batch, so no method has a time of its own here. Medians over cells."
    )
    header = ["length", "task", "prompts", "cells per prompt", "prefill s", "compress s", "decode s"]
    return Table(f"Where the time went: {_name(group, ('model', 'protocol'))}", caption, header, rows)


def stage_seconds(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds per prompt and stage of amortised rows, by (length, task_label).

    `prefill_s` of a row is per prompt, `compress_s` and `decode_s` are the shares of one cell.
    """
    groups = rows.groupby(["length", "task_label"])
    seconds = groups[["prefill_s", "compress_s", "decode_s"]].mean()
    seconds["prompts"] = groups["n_cells"].max()
    seconds["cells"] = groups["n_cells"].sum() / seconds["prompts"]
    for stage in ("compress_s", "decode_s"):
        seconds[stage] *= seconds["cells"]
    return seconds


def _isolated(group: pd.DataFrame) -> Table:
    header = ["length", "batch", "method", "budget", "prefill s", "compress s", "decode ms/token", "speed-up"]
    header += ["tokens/s", "resident MB", "peak MB"]
    rows = []
    for (length, batch), point in group.groupby(["length", "batch"], dropna=False):
        for label, budget, config in configurations(point):
            row = config.iloc[0]
            rows.append([str(length), number(batch, ".0f"), label, budget])
            rows[-1] += [number(row[column], ".3g") for column in ("prefill_s", "compress_s")]
            rows[-1] += [_time(row), number(row["speedup"], ".2f"), number(row["tokens_per_s"], ".3g")]
            rows[-1] += [number(row[column] / MB, ".3g") for column in ("bytes_resident", "peak_bytes")]
    caption = (
        f"{_setting(group)}. timing = isolated: one method at a time, after warm-up; medians, of the decode "
        "time also [20th, 80th percentile]. Speed-up: of a decode step over dense's at the same length and "
        "batch. Peak: weights, the prompt's whole cache and the batch's own together."
    )
    return Table(
        f"Times of one method at a time: {_name(group, ('model', 'protocol'))}", caption, header, rows
    )


def configurations(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(label, budget, its rows), dense first, then by label and budget."""
    found = rows.groupby(["is_dense", "label", "budget_requested"])
    for key in sorted(found.groups, key=lambda key: (not key[0], key[1], budget_key(key[2]))):
        yield key[1], key[2], found.get_group(key)


def _cells(rows: pd.DataFrame, form: Callable[[pd.Series], list[str]], width: int) -> list[str]:
    return form(rows.iloc[0]) if len(rows) else [""] * width


def _score(row: pd.Series) -> list[str]:
    text = f"{row['score']:.2f} [{number(row['ci_low'], '.2f')}, {number(row['ci_high'], '.2f')}]"
    if row["floor"]:
        text += " floor"
    elif row["p_holm"] < significance.ALPHA:
        text += f" {WORSE if row['delta_vs_dense'] < 0 else BETTER}"
    # summaries of earlier versions have no such column
    if row.get("n_failed", 0) > 0:
        text += f" ({failures.note(row['n_failed'], row['n_cells'])})"
    low, high = number(row["kl_ci_low"], ".2g"), number(row["kl_ci_high"], ".2g")
    kl = number(row["kl_to_dense"], ".2g")
    return [text, kl if row["is_dense"] or MISSING in (low, high) else f"{kl} [{low}, {high}]"]


def _difference(row: pd.Series) -> list[str]:
    low, high = number(row["delta_ci_low"], "+.2f"), number(row["delta_ci_high"], "+.2f")
    text = f"{number(row['delta_vs_dense'], '+.2f')} [{low}, {high}]"
    if 0 < row["n_pairs"] < row["n"]:
        text += f" (n = {row['n_pairs']})"
    return [text, number(row["p_value"], ".2g"), number(row["p_holm"], ".2g"), str(row["verdict"])]


def _cut(rows: pd.DataFrame) -> str:
    """Answers cut by the token limit, of all whose end is known."""
    known = rows[rows["n_cut"].notna()]
    return f"{known['n_cut'].sum():.0f}/{known['n_cells'].sum()}" if len(known) else MISSING


def _interval(rows: pd.DataFrame, names: Mapping[int, str]) -> str:
    """What the intervals are; says so where they were computed by an earlier version."""
    text = f"95 % interval{stats.former(rows['stats_version'])}: {names[int(rows['stats_version'].min())]}"
    narrow = ", the bootstrap too narrow, it covers 82 to 93 %"
    return text + narrow if stats.former(rows["stats_version"]) else text


def _power(rows: pd.DataFrame) -> str:
    return significance.power(int(rows["p_holm"].notna().sum()), int(rows["n_pairs"].max()))


def _time(row: pd.Series) -> str:
    low, high = number(row["decode_ms_p20"], ".3g"), number(row["decode_ms_p80"], ".3g")
    # summaries of earlier versions have no such column; eager steps are the plain ones
    recorded = " graph" if "graph" in str(row.get("step", "")) else ""
    return f"{number(row['decode_ms_per_token'], '.3g')} [{low}, {high}]{recorded}"


def _setting(rows: pd.DataFrame) -> str:
    names = {column: joined(rows[column]) for column in (*SETTING, "device", "wording")}
    wording = f", wording {names['wording']}" if names["wording"] else ""
    kernels = f", {names['kernels']} kernels" if names["kernels"] else ""
    return (
        f"{names['model']}, {names['dtype']} on {names['device']} ({names['attention']} attention{kernels}), "
        f"protocol {names['protocol']}{wording}"
    )


def _samples(rows: pd.DataFrame) -> str:
    counts = sorted(rows["n"].unique())
    seeds = " (seeds pooled by sample)" if (rows["seed"] == ALL_SEEDS).any() else ""
    if len(counts) > 1:
        return f"n = {counts[0]} to {counts[-1]} samples per score{seeds}, see summary.csv"
    if not seeds and (rows["n_cells"] > rows["n"]).any():
        return f"n = {counted(counts[0], 'conversation')} per score, each the mean over its turns"
    return f"n = {counted(counts[0], 'sample')} per score{seeds}"


def _name(rows: pd.DataFrame, columns: tuple[str, ...] = ("model", "protocol", "length")) -> str:
    values = [rows[column].iloc[0] for column in columns]
    # prompts without a requested length have 0
    return ", ".join(str(value) for value in values if value != 0)
