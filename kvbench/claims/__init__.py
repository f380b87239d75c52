"""Are published numbers true? Claims in `conf/claims/`, a check for each, a verdict by rule, and their tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvbench.claims import table
from kvbench.claims.claim import Result
from kvbench.claims.evidence import RESULTS, Runs, load

__all__ = ["Result", "evaluate", "write_tables"]


def evaluate(runs: Runs | None = None) -> list[Result]:
    """Check every claim.

    Args:
        runs: results that claims about scores and times are checked against; default is the committed ones.

    Raises:
        UserError: a claim that names no check, or an argument that the check does not have.
    """
    # the cost model behind the checks imports torch
    from kvbench.claims.catalogue import sources
    from kvbench.claims.checks import find

    stored = load() if runs is None else runs
    return [Result(source, claim, find(claim, stored)) for source in sources() for claim in source.claims]


def write_tables(runs: Sequence[str] = (), folder: Path = RESULTS) -> str:
    """Check every claim and write `claims.csv` and `claims.md`.

    Args:
        runs: runs of the user's own, as folders or names in results/runs.
        folder: where committed results are, and the tables go.

    Returns:
        How many verdicts of each kind there are, what needs a GPU, and where the tables are.
    """
    results = evaluate(load(folder, runs))
    folder.mkdir(parents=True, exist_ok=True)
    csv, markdown = folder / "claims.csv", folder / "claims.md"
    table.frame(results).to_csv(csv, index=False)
    markdown.write_text(table.full(results), encoding="utf-8")
    lines = [table.counts_text(results)]
    if commands := table.commands_text(results):
        lines += ["to be run, and then claims again with --run NAME:", commands]
    return "\n\n".join([*lines, f"tables: {csv}, {markdown}"])
