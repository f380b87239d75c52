"""Numbers from kvbench runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from kvbench.claims.claim import Finding, Reading
from kvbench.claims.evidence import Runs


def measured_score(runs: Runs, run: str, where: Mapping[str, object], column: str = "score") -> Finding:
    """Score in percent with its 95 % interval, over all tasks and lengths of the rows.

    Args:
        runs: stored runs.
        run: name of the run.
        where: column values that select rows of its summary.
        column: `score`, or `delta_vs_dense`.

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
    reading = Reading(value=100 * value, low=100 * (value - low), high=100 * (value + high), basis="measured")
    return Finding((reading,), _where(rows))


def measured_speedup(runs: Runs, run: str, where: Mapping[str, object]) -> Finding:
    """Largest speed-up over dense among the rows; the interval comes from p20 and p80 of its steps.

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
    reading = Reading(value=float(row["speedup"]), low=float(low), high=float(high), basis="measured")
    return Finding((reading,), _where(rows.loc[[row.name]]))


def measured_traffic(runs: Runs, run: str, where: Mapping[str, object]) -> Finding:
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


def _mean(values: pd.Series) -> float:
    return math.fsum(values) / len(values)


def _where(rows: pd.DataFrame) -> str:
    models, devices = (" + ".join(sorted(set(rows[name]))) for name in ("model", "device"))
    return f"{models} on {devices}, n = {rows['n'].sum():.0f}"
