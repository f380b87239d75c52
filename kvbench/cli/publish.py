"""Makes a committed run of a run: `python -m kvbench.cli.publish RUN results/NAME`, then `make tables`.

Writes the summary, all cells in one packed file that `kvbench compare`, `best` and `explain` read, and the line of
table.md that says how and when it was made; `make tables` makes the rest of table.md and draws the figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kvbench.config.errors import UserError
from kvbench.config.files import write
from kvbench.report import load
from kvbench.report.format import csv_text
from kvbench.runs.store import Store

FIGURES = ("answer", "kl_vs_read", "score_vs_resident")


def publish(run: str | Path, folder: Path) -> list[Path]:
    """Write a committed run; figures are empty files that `make tables` draws.

    Args:
        run: its folder, or its name under results/runs.
        folder: under results.

    Returns:
        The files.

    Raises:
        UserError: no such run, or not all of its cells are done.
    """
    view = load(run)
    missing = view.plan.cells.keys() - set(view.columns["cell"])
    if missing or view.failures:
        raise UserError(
            f"run: {run} has {len(missing)} cells that are not done, and {len(view.failures)} failed"
        )
    summary, table = folder / "summary.csv", folder / "table.md"
    write(summary, csv_text(view.summary().assign(run=folder.name), "%.10g"))
    made = max(view.columns["time"])[:10]
    experiment = view.config.get("name", view.name)
    write(table, f"# Run {folder.name}\n\nMade with `kvbench run {experiment}`, {made}.\n")
    drawn = [folder / "figures" / f"{kind}.svg" for kind in FIGURES]
    for path in drawn:
        if not path.exists():
            write(path, "")
    return [summary, Store(view.path).pack(folder), table, *drawn]


def main() -> None:
    """Publish the run of the command line and print the files."""
    run, folder = sys.argv[1:]
    print(*publish(run, Path(folder)), sep="\n")


if __name__ == "__main__":
    main()
