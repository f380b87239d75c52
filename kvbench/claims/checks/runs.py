"""Numbers from kvbench runs.

A run on another device than the claim's, or over a part of its grid, is shown but does not decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from kvbench.claims.claim import Finding, Reading
from kvbench.claims.evidence import Runs

Where = Mapping[str, object]


def measured_score(
    runs: Runs, run: str, where: Where, column: str = "score", lengths: Sequence[int] = ()
) -> Finding:
    """Score in percent with its 95 % interval, over all tasks and lengths of the rows.

    Args:
        runs: stored runs.
        run: name of the run.
        where: column values that select rows of its summary.
        column: `score`, or `delta_vs_dense`.
        lengths: the lengths of the claim's grid; any if empty.

    Returns:
        An empty finding if there is no such run.
    """
    rows = runs.rows(run, where)
    if rows is None:
        return Finding()
    ends = {"score": ("ci_low", "ci_high"), "delta_vs_dense": ("delta_ci_low", "delta_ci_high")}[column]
    weights = rows["n"] / rows["n"].sum()
    value = math.fsum(rows[column] * weights)
    # rows are independent samples, so the half-widths add in quadrature
    low, high = (math.hypot(*((rows[end] - rows[column]) * weights)) for end in ends)
    missing = sorted(set(lengths) - {int(length) for length in rows["length"]}) if lengths else []
    other = len(set(rows["length"]) - set(lengths)) if lengths else 0
    name = f"{len(missing)} of {len(lengths)} lengths missing" if missing else f"{other} other lengths"
    reading = Reading(
        name=name if missing or other else "",
        value=100 * value,
        low=100 * (value - low),
        high=100 * (value + high),
        basis="measured",
        beside=bool(missing or other),
    )
    return Finding((reading,), _where(rows))


def measured_average(
    runs: Runs, run: str, where: Where, average: str, tasks: int, over: int, wording: str
) -> Finding:
    """An average over tasks as metrics.csv has it, with the 95 % interval that its tasks' scores give it.

    Args:
        runs: stored runs.
        run: name of the run.
        where: model, method and budget_requested; without a budget those of dense.
        average: the average's name there, without `average`.
        tasks: number of tasks.
        over: what their sum is divided by.
        wording: source of the sentences; a run with others is shown but does not decide.

    Returns:
        An empty finding if there is no such run, or it has not all the tasks.
    """
    rows, metrics = runs.rows(run, where), runs.metrics.get(run)
    if rows is None or metrics is None or len(rows) != tasks:
        return Finding()
    wanted = {"budget": "-", **where, "metric": f"average {average}"}
    wanted["budget"] = wanted.pop("budget_requested", "-")
    for column, value in wanted.items():
        metrics = metrics[metrics[column].astype(str) == str(value)]
    if len(metrics) != 1:
        return Finding()
    # tasks have other samples, so the half-widths add in quadrature
    low, high = (100 * math.hypot(*(rows[end] - rows["score"])) / over for end in ("ci_low", "ci_high"))
    value = float(metrics["value"].iloc[0])
    others = sorted(set(map(str, rows["wording"])) - {wording})
    name = f"wording {', '.join(others)}" if others else ""
    reading = Reading(
        name=name, value=value, low=value - low, high=value + high, basis="measured", beside=bool(others)
    )
    return Finding((reading,), _where(rows))


def measured_speedup(runs: Runs, run: str, where: Where, device: str) -> Finding:
    """Largest speed-up over dense among the rows; the interval comes from p20 and p80 of its steps.

    Args:
        runs: stored runs.
        run: name of the run.
        where: column values that select rows of its summary.
        device: part of the name of the claim's device.

    Returns:
        An empty finding if there is no such run.
    """
    rows = runs.rows(run, where)
    if rows is None:
        return Finding()
    row = rows.loc[rows["speedup"].idxmax()]
    low, high = (
        row["speedup"] * row["decode_ms_per_token"] / row[end] for end in ("decode_ms_p80", "decode_ms_p20")
    )
    return _on_device(
        Reading(value=float(row["speedup"]), low=float(low), high=float(high), basis="measured"),
        rows.loc[[row.name]],
        device,
    )


def measured_saving(runs: Runs, run: str, where: Where, new: int, device: str) -> Finding:
    """Latency saved against dense in percent, for prefill, compression and `new` decode steps.

    The interval comes from p20 and p80 of the method's steps.

    Args:
        runs: stored runs.
        run: name of the run.
        where: column values that select one row of its summary; dense is the row that differs in method and budget.
        new: decoded tokens.
        device: part of the name of the claim's device.

    Returns:
        An empty finding if there is no such run.
    """
    rows = runs.rows(run, where)
    shared = {key: value for key, value in where.items() if key not in ("method", "budget_requested")}
    dense = runs.rows(run, shared | {"method": "dense"})
    if rows is None or dense is None:
        return Finding()
    before = _latency(dense.iloc[0], "decode_ms_per_token", new)
    value, low, high = (
        100 * (1 - _latency(rows.iloc[0], column, new) / before)
        for column in ("decode_ms_per_token", "decode_ms_p80", "decode_ms_p20")
    )
    return _on_device(Reading(value=value, low=low, high=high, basis="measured"), rows.iloc[:1], device)


def measured_seconds(runs: Runs, run: str, where: Where, columns: Sequence[str], device: str) -> Finding:
    """The sum of columns in seconds, mean over the rows.

    Args:
        runs: stored runs.
        run: name of the run.
        where: column values that select rows of its summary.
        columns: the columns to add.
        device: part of the name of the claim's device.

    Returns:
        An empty finding if there is no such run.
    """
    rows = runs.rows(run, where)
    if rows is None:
        return Finding()
    seconds = rows[list(columns)].fillna(0).sum(axis=1)
    reading = Reading(
        value=_mean(seconds), low=float(seconds.min()), high=float(seconds.max()), basis="measured"
    )
    return _on_device(reading, rows, device)


def measured_traffic(runs: Runs, run: str, where: Where) -> Finding:
    """Bytes read per decode step, in tokens of dense K and V; the interval spans the rows.

    Returns:
        An empty finding if there is no such run.
    """
    rows, dense = runs.rows(run, where), runs.rows(run, {"method": "dense"})
    if rows is None or dense is None:
        return Finding()
    per_token = _mean(dense["bytes_resident"] / dense["kept_tokens"])
    tokens = rows["bytes_read_per_step"] / per_token
    reading = Reading(
        value=_mean(tokens), low=float(tokens.min()), high=float(tokens.max()), basis="measured"
    )
    return Finding((reading,), _where(rows))


def _on_device(reading: Reading, rows: pd.DataFrame, device: str) -> Finding:
    """The reading, which only decides if all its rows are from the device."""
    others = sorted({name for name in rows["device"] if device.lower() not in str(name).lower()})
    name = f"on {', '.join(others)}" if others else "measured"
    found = Reading(
        name=name,
        value=reading.value,
        low=reading.low,
        high=reading.high,
        basis="measured",
        beside=bool(others),
    )
    return Finding((found,), _where(rows))


def _latency(row: pd.Series, step: str, new: int) -> float:
    seconds = [row["prefill_s"], row["compress_s"], new * row[step] / 1000]
    return math.fsum(float(part) for part in seconds if not pd.isna(part))


def _mean(values: pd.Series) -> float:
    return math.fsum(values) / len(values)


def _where(rows: pd.DataFrame) -> str:
    models, devices = (" + ".join(sorted(set(rows[name]))) for name in ("model", "device"))
    return f"{models} on {devices}, n = {rows['n'].sum():.0f}"
