"""Claims as a CSV file, a Markdown page, the headlines of docs/findings.md and the README's lines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

import pandas as pd

from kvbench.claims.claim import (
    BY_MODEL,
    DEPENDS,
    NEEDS_GPU,
    REPRODUCED,
    VERDICTS,
    YES_OR_NO,
    Claim,
    Reading,
    Result,
)
from kvbench.report.format import markdown_table

_RELATIONS = {"equal": "", "at most": "≤ ", "at least": "≥ "}
_UNITS = {"x": "x"}
INDEPENDENT = "independent checks"
EXPLANATION = (
    "A verdict follows from the first reading, else from whether another one agrees; a measurement on the device of "
    "the claim comes first. *Depends on the reading* names what the readings differ in. *Undecided*: a measurement "
    "agrees, but its interval is too wide to reproduce the number. *Not derivable*: the source does not say what "
    "the number is, or nothing here can measure it. *At most*: a limit, which can refute a number but not reproduce "
    "it. *Besides*: good to know, but not a way to read the claim. Second-hand: read in notes or quotations; where "
    "such a number is contradicted, the notes may be wrong."
)
SIGNIFICANT = 12  # digits of a float that do not depend on the order of a sum


def frame(results: Sequence[Result]) -> pd.DataFrame:
    """One row per claim: printed number, ours with its interval, verdict, all readings, command."""
    return pd.DataFrame([_row(result) for result in results])


def headlines(results: Sequence[Result]) -> str:
    """What the verdicts rest on, the headline claims, and verdicts by paper, as Markdown."""
    papers = list(dict.fromkeys(result.source.paper for result in results))
    counts = []
    for paper in [*papers, "all"]:
        of_paper = [result for result in results if paper in (result.source.paper, "all")]
        independent = sum(is_independent(result) for result in of_paper)
        kinds = (str(_count(of_paper, verdict)) for verdict in VERDICTS)
        counts.append([paper, str(len(of_paper)), *kinds, str(independent)])
    rows = [
        [result.source.paper, statement(result.claim), printed(result.claim), ours(result), _named(result)]
        for result in results
        if result.claim.headline
    ]
    tables = [
        markdown_table(["", "claim", "printed", "ours", "verdict"], rows),
        markdown_table(["", "claims", *VERDICTS, INDEPENDENT], counts),
    ]
    legend = "*At most* is a limit by bytes, *besides* is no way to read the claim."
    return "\n\n".join([f"{bases(results)} {legend}", *tables])


def brief(results: Sequence[Result]) -> str:
    """The README's lines: how many claims have which verdict, and what the verdicts rest on."""
    plural = {DEPENDS: "depend on the reading", NEEDS_GPU: "need a GPU"}
    counts = ((_count(results, verdict), plural.get(verdict, verdict)) for verdict in VERDICTS)
    verdicts = ", ".join(f"{count} {verdict}" for count, verdict in counts if count)
    return (
        f"`kvbench claims` checks {len(results)} published numbers and statements: {verdicts}.\n{bases(results)}\n"
        "[The headline claims](docs/findings.md#are-the-published-numbers-true); "
        "[all claims, with their places in the sources](results/claims.md)."
    )


def is_independent(result: Result) -> bool:
    """Whether the verdict rests on a measurement, of ours or of others, not on the source or a model."""
    candidates = [reading for reading in result.finding.readings if not reading.beside]
    return bool(candidates) and candidates[0].basis == "measured"


def bases(results: Sequence[Result]) -> str:
    """What the verdicts rest on, in a few sentences."""
    reproduced = [result for result in results if result.verdict in (REPRODUCED, BY_MODEL)]
    kinds = {"printed": 0, "formula": 0, "modelled": 0, "measured": 0}
    for result in reproduced:
        kinds[next(r.basis for r in result.finding.readings if not r.beside)] += 1
    unmeasured = len(reproduced) - kinds["measured"]
    return (
        f"Of the {len(reproduced)} claims reproduced, {unmeasured} rest on arithmetic, price look-ups or models: "
        f"{kinds['printed']} only recompute the source's own printed numbers, {kinds['formula']} follow from formulas "
        f"that the code runs or from dated prices and source code, {kinds['modelled']} from the cost model or the rule "
        f"engine. {kinds['measured']} rest on a measurement. Counted apart, of all {len(results)}: "
        f"{sum(map(is_independent, results))} {INDEPENDENT} against measurements."
    )


def full(results: Sequence[Result]) -> str:
    """Every claim, by paper, as one Markdown page."""
    parts = [
        "# Published numbers, and what we find",
        "Written by `kvbench claims --write` from `conf/claims/`; the same as data in [claims.csv](claims.csv). "
        + EXPLANATION,
        counts_text(results),
    ]
    for paper in dict.fromkeys(result.source.paper for result in results):
        of_paper = [result for result in results if result.source.paper == paper]
        rows = [
            [
                statement(r.claim),
                f"{r.claim.where}: “{r.claim.printed}”; {r.claim.setting}",
                printed(r.claim),
                ours(r) + (f" ({r.finding.note})" if r.finding.note else ""),
                _verdict(r),
            ]
            for r in of_paper
        ]
        table = markdown_table(["claim", "where, setting", "printed", "ours", "verdict"], rows)
        parts += [f"## {paper}", of_paper[0].source.source + ".", table]
    return "\n\n".join(parts) + "\n"


def plain(results: Sequence[Result], width: int) -> str:
    """Every claim with its verdict, by paper, for a terminal: `printed` and `ours` below the statement.

    Args:
        results: of the claims.
        width: columns of the terminal.
    """
    lines: list[str] = []
    for paper in dict.fromkeys(result.source.paper for result in results):
        of_paper = [result for result in results if result.source.paper == paper]
        lines += ["", paper]
        for result in of_paper:
            found = f"printed {printed(result.claim)}; ours {ours(result)}"
            for text, first in ((f"{_named(result)}: {statement(result.claim)}", "  "), (found, "      ")):
                lines += textwrap.wrap(
                    text, width, initial_indent=first, subsequent_indent="      ", break_on_hyphens=False
                )
    return "\n".join(lines).lstrip("\n")


def counts_text(results: Sequence[Result]) -> str:
    """`81 claims: 40 reproduced, ...`."""
    counts = ", ".join(f"{_count(results, verdict)} {verdict}" for verdict in VERDICTS)
    return f"{len(results)} claims: {counts}"


def commands_text(results: Sequence[Result]) -> str:
    """The commands to run on a GPU, each with the claims whose verdict it moves, unless a run did already."""
    commands: dict[str, list[str]] = {}
    for result in results:
        if result.claim.command and not is_independent(result):
            commands.setdefault(result.claim.command, []).append(result.claim.id)
    return "\n".join(f"{command}\n    for {', '.join(names)}" for command, names in commands.items())


def printed(claim: Claim) -> str:
    """The printed number with its unit and relation."""
    return _RELATIONS[claim.relation] + _number(claim.value, claim)


def ours(result: Result) -> str:
    """All readings, the plain one first."""
    return "; ".join(_reading(reading, result.claim) for reading in result.finding.readings) or "-"


def statement(claim: Claim) -> str:
    """The claim, with a remark where it was not read in the source itself."""
    return claim.claim + (" (second-hand)" if claim.known == "second-hand" else "")


def _reading(reading: Reading, claim: Claim) -> str:
    text = _number(reading.value, claim)
    if reading.low is not None and reading.high is not None:
        low, high = (f"{_rounded(end, claim):,.10g}" for end in (reading.low, reading.high))
        text += f" [{low}, {high}]"
    text = ("besides " if reading.beside else "at most " if reading.limit else "") + text
    return text + (f" ({reading.name})" if reading.name else "")


def _rounded(value: float, claim: Claim) -> float:
    """One digit more than is printed, so that a difference shows, and at least three significant ones.

    Ties are decided in decimal, half away from zero: binary noise in the last digits of a float must not decide them.
    """
    digits = len(str(claim.value).partition(".")[2].rstrip("0"))
    significant = 2 - math.floor(math.log10(abs(value))) if value else 0
    unit = Decimal(1).scaleb(-max(digits + 1, significant))
    return float(Decimal(f"{value:.{SIGNIFICANT}g}").quantize(unit, ROUND_HALF_UP))


def _number(value: float, claim: Claim) -> str:
    if claim.unit == YES_OR_NO:
        return "yes" if value else "no"
    number = f"{_rounded(value, claim):,.10g}"
    return f"${number}" if claim.unit == "$" else number + _UNITS.get(claim.unit, f" {claim.unit}")


def _named(result: Result) -> str:
    """The verdict, with the axis that it depends on."""
    return f"{DEPENDS} ({result.claim.axis})" if result.verdict == DEPENDS else result.verdict


def _verdict(result: Result) -> str:
    if result.claim.command and result.verdict != REPRODUCED:
        needs = NEEDS_GPU if result.verdict == NEEDS_GPU else f"{_named(result)}; to measure it"
        return f"{needs} ({result.claim.hardware}) `{result.claim.command}`"
    return _named(result)


def _row(result: Result) -> dict[str, object]:
    claim, readings = result.claim, result.finding.readings
    first = readings[0] if readings else None
    return {
        "id": claim.id,
        "paper": result.source.paper,
        "where": claim.where,
        "source_text": claim.printed,
        "claim": claim.claim,
        "setting": claim.setting,
        "relation": claim.relation,
        "value": claim.value,
        "unit": claim.unit,
        "known": claim.known,
        "how": claim.how,
        "hardware": claim.hardware,
        "check": claim.check["name"],
        # ten digits: the last digits of a float differ between machines
        "ours": "" if first is None else f"{first.value:.10g}",
        "ours_low": "" if first is None or first.low is None else f"{first.low:.10g}",
        "ours_high": "" if first is None or first.high is None else f"{first.high:.10g}",
        "basis": "" if first is None else first.basis,
        "verdict": result.verdict,
        "axis": claim.axis or "",
        "independent": is_independent(result),
        "readings": "; ".join(_reading(reading, claim) for reading in readings),
        "note": result.finding.note,
        "command": claim.command or "",
    }


def _count(results: Sequence[Result], verdict: str) -> int:
    return sum(result.verdict == verdict for result in results)
