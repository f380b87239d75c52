"""The README's tables: the one of the committed reference run, and where tables go."""

import pandas as pd

from kvbench.report.format import MB, markdown_table, number


def table(summary: pd.DataFrame) -> str:
    """Score and KL per task of the largest budget, one row per method, with the bytes that a decode step reads.

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
        own = rows[rows["method"] == method].set_index("task")
        line = [
            method,
            number(own["bytes_resident"].mean() / MB, ".1f"),
            number(own["bytes_read_per_step"].mean() / MB, ".1f"),
        ]
        for task in tasks:
            row = own.loc[task]
            line += [
                f"{row['score']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]",
                f"{row['kl_to_dense']:.2g}",
            ]
        lines.append(line)
    first = rows.iloc[0]
    where = f"{first['model']}, {first['dtype']}, {first['device']}"
    what = f"{first['length']} tokens, {first['protocol']}, wording {first['wording']}"
    caption = (
        f"Measured: {where}; {what}, budget {budget:.0f}, n = {first['n']} with 95 % intervals."
        " KL(dense || method) in nats."
    )
    return f"{markdown_table(header, lines)}\n\n{caption}"


def insert(readme: str, name: str, text: str) -> str:
    """The README with a text between the marks `<!-- NAME table -->` and `<!-- end -->`; unchanged without them."""
    start, end = f"<!-- {name} table -->", "<!-- end -->"
    head, found, rest = readme.partition(start)
    return f"{head}{start}\n{text}\n{end}{rest.partition(end)[2]}" if found else readme
