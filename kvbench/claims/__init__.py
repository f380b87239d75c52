"""Checks published numbers: claims in `conf/claims/`, a check for each, a verdict by rule, and result tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvbench.claims import page, table
from kvbench.claims.claim import VERDICTS, Result
from kvbench.claims.evidence import Runs, load
from kvbench.config.files import write
from kvbench.config.typed import unknown
from kvbench.report.format import csv_text

__all__ = ["Result", "chosen", "evaluate", "write_tables"]

WRITTEN = Path("results")


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


def chosen(results: Sequence[Result], sources: Sequence[str], verdicts: Sequence[str]) -> list[Result]:
    """The results of some sources and verdicts; without any, all of them.

    Args:
        results: of all claims.
        sources: names of papers, without regard to case.
        verdicts: verdicts; of both, a part that only one name has suffices.

    Raises:
        UserError: no such source or verdict.
    """
    papers = list(dict.fromkeys(result.source.paper for result in results))
    wanted, kinds = _wanted(papers, sources, verdicts)
    return [result for result in results if result.source.paper in wanted and result.verdict in kinds]


def check_names(sources: Sequence[str], verdicts: Sequence[str]) -> None:
    """Refuse what `chosen` would, before all claims are checked."""
    from kvbench.claims import catalogue

    _wanted([source.paper for source in catalogue.sources()], sources, verdicts)


def _wanted(
    papers: Sequence[str], sources: Sequence[str], verdicts: Sequence[str]
) -> tuple[set[str], set[str]]:
    wanted = {_named("--source", name, papers, "source") for name in sources} or set(papers)
    return wanted, {_named("--verdict", name, VERDICTS, "verdict") for name in verdicts} or set(VERDICTS)


def _named(key: str, given: str, known: Sequence[str], what: str) -> str:
    """The name that is given, or the only one that it is a part of."""
    names = {name.lower(): name for name in known}
    word = " ".join(given.lower().split())
    found = [name for low, name in names.items() if word and word in low]
    if word in names or len(found) == 1:
        return names.get(word) or found[0]
    raise unknown(key, given, known, what)


def write_tables(results: Sequence[Result], folder: Path = WRITTEN) -> list[Path]:
    """Write `claims.csv`, `claims.md` and the page `claims.html`.

    Args:
        results: of all claims.
        folder: where to.

    Returns:
        The files.

    Raises:
        UserError: the folder cannot be written.
    """
    contents = {
        "claims.csv": csv_text(table.frame(results)),
        "claims.md": table.full(results),
        "claims.html": page.page(results).html(),
    }
    return [write(folder / name, content, "--write") for name, content in contents.items()]
