"""The page of all claims: a table with filters by source and verdict."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.claims import table
from kvbench.claims.claim import Result
from kvbench.report.page import Column, Explorer, Page
from kvbench.report.style import styles

_COLUMNS = {
    "source": Column("source"),
    "claim": Column("claim", text=True),
    "printed": Column("printed"),
    "ours": Column("ours", text=True),
    "verdict": Column("verdict"),
    "basis": Column("rests on"),
    "where": Column("where", text=True),
    "setting": Column("setting", text=True),
    "words": Column("words of the source", text=True),
    "note": Column("note", text=True),
    "command": Column("command", text=True),
    "id": Column("id"),
}
_FOLDED = ("where", "setting", "words", "note", "command", "id")


def page(results: Sequence[Result]) -> Page:
    """The page of claims.

    Args:
        results: of the claims.
    """
    explorer = Explorer(
        caption="One row per claim; a column's heading sorts by it.",
        rows=[_row(result) for result in results],
        columns=_COLUMNS,
        series="source",
        styles=styles([]),
        table=list(_COLUMNS),
        x=("source",),
        filters=("source", "verdict", "basis"),
        folded=_FOLDED,
    )
    return Page(
        title="Published numbers, and what we find",
        lead=f"{table.counts_text(results)}.",
        explorers=[explorer],
        guide=[table.EXPLANATION.replace("*", "")],
    )


def _row(result: Result) -> dict[str, str]:
    claim, readings = result.claim, result.finding.readings
    return {
        "source": result.source.paper,
        "claim": table.statement(claim),
        "printed": table.printed(claim),
        "ours": table.ours(result),
        "verdict": result.verdict,
        "basis": readings[0].basis if readings else "",
        "where": claim.where,
        "setting": claim.setting,
        "words": claim.printed,
        "note": result.finding.note,
        "command": claim.command or "",
        "id": claim.id,
    }
