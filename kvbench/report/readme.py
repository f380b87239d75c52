"""The README's table, from the committed reference run: `python -m kvbench.report.readme README.md SUMMARY.csv`."""

import sys
from pathlib import Path

import pandas as pd

START, END = "<!-- quickstart table -->", "<!-- end -->"


def table(summary: pd.DataFrame) -> str:
    """Score and KL per task of the largest budget, one row per method, with the bytes that a decode step reads.

    Args:
        summary: summary.csv of a run with one setting and length.
    """
    tasks = sorted(summary["task"].unique())
    budget = pd.to_numeric(summary["budget_requested"], errors="coerce").max()
    rows = summary[summary["is_dense"] | (pd.to_numeric(summary["budget_requested"]) == budget)]
    header = ["method", "resident MB", "read MB per step"]
    header += [f"{task.removeprefix('ruler_')}{what}" for task in tasks for what in (": score", ": KL")]
    lines = [header, ["---"] * len(header)]
    for method in ["dense", *sorted(set(rows["method"]) - {"dense"})]:
        own = rows[rows["method"] == method].set_index("task")
        line = [
            method,
            f"{own['bytes_resident'].mean() / 1e6:.1f}",
            f"{own['bytes_read_per_step'].mean() / 1e6:.1f}",
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
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", caption])


def insert(readme: str, summary: pd.DataFrame) -> str:
    """The README with the table between its marks."""
    head, _, rest = readme.partition(START)
    return f"{head}{START}\n{table(summary)}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path, source = map(Path, sys.argv[1:])
    path.write_text(insert(path.read_text(), pd.read_csv(source)))
