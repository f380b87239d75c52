"""Formatted numbers and Markdown tables."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from kvbench.report.format import frame_table, markdown_table, number


@pytest.mark.parametrize(
    ("value", "spec", "scale", "text"),
    [
        (1.234, ".2f", 1, "1.23"),
        (np.float64(0.05), ".3g", 100, "5"),
        (1234.5, ".3g", 1, "1,234"),
        (999.4, ".3g", 1, "999"),
        (5000, ",d", 1, "5,000"),
        (0.5, ",.1f", 1e3, "500.0"),
        (None, ".2f", 1, "-"),
        (float("nan"), ",.0f", 1000, "-"),
    ],
)
def test_numbers(value, spec, scale, text):
    assert number(value, spec, scale) == text


def test_a_table_is_plain_aligned_or_padded():
    header, rows = ["a", "bb"], [["1|2", "<i>"]]
    assert markdown_table(header, rows).splitlines() == [
        "| a | bb |",
        "| --- | --- |",
        "| 1\\|2 | &lt;i&gt; |",
    ]
    assert markdown_table(header, rows, right=[False, True]).splitlines()[1] == "|---|---:|"
    padded = markdown_table(header, rows, padded=True).splitlines()
    assert padded[:2] == ["| a    | bb        |", "|------|-----------|"]


def test_a_table_without_rows_has_a_header():
    assert markdown_table(["a"], []) == "| a |\n| --- |"


def test_a_frame_is_a_table_with_numbers_to_the_right():
    frame = pd.DataFrame({"name": ["x"], "share": [0.25], "n": [3], "known": [True]})
    lines = ["| name | share | n | known |", "|---|---:|---:|---:|", "| x | 0.2500 | 3 | True |"]
    assert frame_table(frame) == "\n".join(lines) + "\n"
    assert "| x | 0.2 | 3 |" in frame_table(frame, digits=1)
    assert frame_table(frame[:0]) == "None.\n"


def test_the_module_imports_neither_pandas_nor_matplotlib():
    code = "import sys, kvbench.report.format; sys.exit(bool({'pandas', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
