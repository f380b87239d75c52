"""Measured decode steps beside modelled ones, and where the difference is."""

from __future__ import annotations

import pandas as pd

from kvbench.cost.shapes import ModelShape
from kvbench.report.format import markdown_table, number

#: bytes per number
ELEMENT = {"bfloat16": 2, "float16": 2, "float32": 4}


def split(summary: pd.DataFrame, shape: ModelShape, bandwidth: float) -> pd.DataFrame:
    """The parts of each measured step.

    Args:
        summary: of an efficiency run with dense.
        shape: its model.
        bandwidth: bytes per second that the device reads.

    Returns:
        One row per method, budget, length and batch, in milliseconds: `measured`; `modelled`, the bytes of weights and
        caches over the bandwidth; `fixed`, what dense takes beyond its bytes at the shortest length of that batch,
        which is launches, the host and small operations; `rest`, what neither explains: the method's own operations,
        and attention that reads slower than the bandwidth.
    """
    rows = summary.loc[summary["timing"] == "isolated"].copy()
    element = rows["dtype"].map(ELEMENT)
    moved = element * shape.weights_read(1) + rows["batch"] * rows["bytes_read_per_step"]
    rows["measured"], rows["modelled"] = rows["decode_ms_per_token"], 1e3 * moved / bandwidth
    dense = rows[rows["is_dense"]].sort_values("length").groupby("batch").first()
    rows["fixed"] = rows["batch"].map(dense["measured"] - dense["modelled"])
    rows["rest"] = rows["measured"] - rows["modelled"] - rows["fixed"]
    order = ["batch", "length", "is_dense", "method"]
    return rows.sort_values(order, ascending=[True, True, False, True], ignore_index=True)


def table(summary: pd.DataFrame, shape: ModelShape, bandwidth: float) -> str:
    """`split` as Markdown, with the reason of each gap; arguments as there."""
    header = [
        "tokens", "batch", "method", "budget", "measured ms", "modelled ms", "measured / modelled",
        "launches and host ms", "rest ms", "reason",
    ]  # fmt: skip
    cells = []
    for row in split(summary, shape, bandwidth).to_dict("records"):
        budget = "" if row["is_dense"] else str(row["budget_requested"])
        numbers = [
            row["measured"],
            row["modelled"],
            row["measured"] / row["modelled"],
            row["fixed"],
            row["rest"],
        ]
        shown = [number(value, ".2f") for value in numbers]
        cells.append(
            [str(row["length"]), f"{row['batch']:g}", str(row["method"]), budget, *shown, reason(row)]
        )
    caption = (
        f"Modelled: bytes of weights and caches at {bandwidth / 1e9:,.0f} GB/s, measured here: a lower bound. Launches "
        "and host: what dense takes beyond its bytes at the shortest length."
    )
    return f"{markdown_table(header, cells, right=[name not in ('method', 'reason') for name in header])}\n\n{caption}"


def reason(row: dict[str, float]) -> str:
    """The larger part of a gap, in words.

    Args:
        row: of `split`.
    """
    gap = row["measured"] - row["modelled"]
    if gap <= 0.1 * row["modelled"]:
        return "at the bandwidth"
    if row["fixed"] >= row["rest"]:
        return "launches and host"
    return (
        "attention below the bandwidth"
        if row["is_dense"]
        else "choice of tokens, or attention below the bandwidth"
    )
