"""Measured steps, split by hand."""

import pandas as pd
import pytest

from kvbench.cost import gaps
from kvbench.cost.shapes import model_shape


def row(method, length, measured, moved, batch=1):
    """A row of a summary: measured milliseconds, bytes read per sequence and step."""
    return {
        "timing": "isolated", "dtype": "bfloat16", "batch": batch, "length": length, "method": method,
        "budget_requested": "" if method == "dense" else "1024", "is_dense": method == "dense",
        "decode_ms_per_token": measured, "bytes_read_per_step": moved,
    }  # fmt: skip


def test_a_gap_is_what_dense_takes_at_the_shortest_length_and_a_rest():
    shape = model_shape("llama31_8b")
    weights = shape.weights_read(2)
    # a device that reads the weights in 5 ms, and 1 ms more for each fifth of them
    bandwidth, part = weights / 5e-3, weights / 5
    summary = pd.DataFrame(
        [
            row("dense", 1024, 7.0, 0.0), row("dense", 32768, 9.5, 2 * part), row("quest", 32768, 12.0, part / 2),
            row("dense", 1024, 6.0, part / 4, batch=4), row("quest", 1024, 6.1, part / 4, batch=4),
        ]
    )  # fmt: skip
    found = gaps.split(summary, shape, bandwidth)
    columns = ["batch", "length", "method", "modelled", "fixed", "rest"]
    expected = [
        (1, 1024, "dense", 5.0, 2.0, 0.0), (1, 32768, "dense", 7.0, 2.0, 0.5), (1, 32768, "quest", 5.5, 2.0, 4.5),
        (4, 1024, "dense", 6.0, 0.0, 0.0), (4, 1024, "quest", 6.0, 0.0, 0.1),
    ]  # fmt: skip
    for got, wanted in zip(found[columns].itertuples(index=False), expected, strict=True):
        assert tuple(got)[:3] == wanted[:3] and tuple(got)[3:] == pytest.approx(wanted[3:])
    assert [gaps.reason(each) for each in found.to_dict("records")] == [
        "launches and host", "launches and host", "choice of tokens, or attention below the bandwidth",
        "at the bandwidth", "at the bandwidth",
    ]  # fmt: skip
    text = gaps.table(summary, shape, bandwidth)
    assert (
        text.count("\n") == 8 and "| 32768 | 1 | quest | 1024 | 12.00 | 5.50 | 2.18 | 2.00 | 4.50 |" in text
    )


def test_rows_of_shared_steps_are_left_out():
    summary = pd.DataFrame(
        [row("dense", 1024, 7.0, 0.0), row("dense", 2048, 7.0, 0.0) | {"timing": "amortised"}]
    )
    assert list(gaps.split(summary, model_shape("llama31_8b"), 1e12)["length"]) == [1024]
