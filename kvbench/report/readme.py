"""The README's table of a run, and where tables go in a document."""

import pandas as pd

from kvbench.report import stats
from kvbench.report.format import MB, markdown_table, number


def table(summary: pd.DataFrame) -> str:
    """Score and KL per task at the largest budget, one row per method, with resident and read bytes.

    Args:
        summary: summary.csv of a run with one setting and length.
    """
    tasks = sorted(summary["task"].unique())
    budgets = pd.to_numeric(summary["budget_requested"], errors="coerce")
    budget = budgets.max()
    rows = summary[summary["is_dense"] | (budgets == budget)]
    header = ["method", "resident MB", "read MB per step"]
    header += [f"{task.removeprefix('ruler_')}{what}" for task in tasks for what in (": score", ": KL")]
    lines = []
    for method in ["dense", *sorted(set(rows["method"]) - {"dense"})]:
        by_task = rows[rows["method"] == method].set_index("task")
        line = [
            method,
            number(by_task["bytes_resident"].mean() / MB, ".1f"),
            number(by_task["bytes_read_per_step"].mean() / MB, ".1f"),
        ]
        for task in tasks:
            row = by_task.loc[task]
            line += [
                f"{row['score']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]",
                f"{row['kl_to_dense']:.2g}",
            ]
        lines.append(line)
    first = rows.iloc[0]
    where = f"{first['model']}, {first['dtype']}, {first['device']}"
    what = f"{first['length']} tokens, {first['protocol']}, wording {first['wording']}"
    caption = (
        f"Measured: {where}; {what}, budget {budget:.0f}, n = {first['n']} with 95 % intervals"
        f"{stats.former(rows['stats_version'])}."
        " KL(dense || method) in nats."
    )
    return f"{markdown_table(header, lines)}\n\n{caption}"


def insert(document: str, name: str, text: str) -> str:
    """A document with the text between `<!-- NAME table -->` and `<!-- end -->` replaced, if it has these marks."""
    start, end = f"<!-- {name} table -->", "<!-- end -->"
    head, found, rest = document.partition(start)
    return f"{head}{start}\n{text}\n{end}{rest.partition(end)[2]}" if found else document
