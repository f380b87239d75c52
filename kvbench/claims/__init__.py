"""Checks published numbers: claims in `conf/claims/`, a check for each, a verdict by rule, and result tables."""

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
        runs: results to check claims about scores and times against; defaults to the committed ones.

    Raises:
        UserError: a claim without a check, or with an argument that its check does not have.
    """
    # the cost model behind the checks imports torch
    from kvbench.claims.catalogue import sources
    from kvbench.claims.checks import find

    stored = load() if runs is None else runs
    return [Result(source, claim, find(claim, stored)) for source in sources() for claim in source.claims]


def write_tables(runs: Sequence[str] = (), folder: Path = RESULTS) -> str:
    """Check every claim and write `claims.csv` and `claims.md`.

    Args:
        runs: the user's runs, as folders or names in results/runs.
        folder: folder of the committed results and of the tables.

    Returns:
        The number of verdicts of each kind, the commands that need a GPU, and the paths of the tables.
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
