"""Result tables: one row per placement with its range, and the effect of each open point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.billed import Bill
from kvbench.claude.causes import CAUSES, FIXABLE
from kvbench.claude.diagnosis import Diagnosis, Finding
from kvbench.claude.prices import NANO, dollars
from kvbench.claude.simulate import Range, Totals
from kvbench.config.text import counted
from kvbench.report.format import frame_table

AS_BILLED = "as_billed"


def usd(nano: int) -> float:
    """Converts nano-dollars to dollars, for tables and plots only."""
    return nano / NANO


def cost_row(name: str, result: Range, plain: Totals) -> dict[str, Any]:
    """One placement: cost with its range, saving and tokens.

    Args:
        name: of the placement.
        result: its range.
        plain: totals without cache_control, the baseline.
    """
    totals = result.base
    return {
        "placement": name,
        "requests": totals.requests,
        "cost_usd": usd(totals.cost),
        "low_usd": usd(result.low),
        "high_usd": usd(result.high),
        "input_usd": usd(totals.input_cost),
        "of_uncached": totals.cost / plain.cost if plain.cost else float("nan"),
        "hit_rate": totals.hit_rate,
        "requests_with_hit": totals.hits,
        "read": totals.read,
        "write_5m": totals.write_5m,
        "write_1h": totals.write_1h,
        "uncached": totals.uncached,
        "output": totals.output,
        "peak_itpm": totals.peak_itpm,
        "undecided": totals.undecided,
    }


def display_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The main columns of `cost_row`, formatted; the CSV files have all of them."""
    table = pd.DataFrame({"placement": frame["placement"], "requests": frame["requests"]})
    table["USD"] = frame["cost_usd"].map("{:.4f}".format)
    table["range"] = [
        "" if low == high else f"{low:.4f} to {high:.4f}"
        for low, high in zip(frame["low_usd"], frame["high_usd"], strict=True)
    ]
    table["of no markers"] = frame["of_uncached"].map("{:.1%}".format)
    table["tokens read"] = frame["hit_rate"].map("{:.1%}".format)
    for column in ("read", "write_5m", "write_1h", "uncached", "peak_itpm"):
        table[column] = frame[column].map("{:,}".format)
    table["undecided"] = frame["undecided"]
    return table


GUIDE = (
    "All costs are modelled: what the documented rules and the list prices give for these requests, input and "
    "output; only as_billed, where it stands, is the usage that the API reported, at list prices. USD: with every "
    "undocumented point at its literal reading; range: those points turned, see below. of no markers: cost of the "
    "same requests without cache_control = 100 %. tokens read: share of the input tokens that came from the cache. "
    "peak_itpm: most input tokens in one minute of the clock that count towards the rate limit. undecided: requests "
    "whose marked prefix is within 5 % of the model's minimum by a count that is an estimate; they may or may not be "
    "cached.\n"
)


def point_deltas(ranges: Mapping[str, Range]) -> pd.DataFrame:
    """Change of each placement's cost in dollars when one open point is changed: one row per point."""
    texts = {code: text for code, text, _ in Assumptions().flips()}
    frame = pd.DataFrame(
        {name: {code: usd(delta) for code, delta in r.flips.items()} for name, r in ranges.items()}
    )
    frame = frame.rename_axis("point").reset_index()
    frame.insert(1, "open", frame["point"].map(texts))
    return frame


def point_deltas_text(frame: pd.DataFrame) -> str:
    """The non-zero rows of `point_deltas` as Markdown, and the names of the other points."""
    deltas = frame.drop(columns=["point", "open"])
    still = (deltas == 0).all(axis=1)
    text = "" if still.all() else frame_table(frame[~still]) + "\n"
    if still.any():
        text += f"These move nothing here: {', '.join(frame.loc[still, 'point'])}.\n"
    return text


def choice_deltas(base: Mapping[str, Totals], changed: Mapping[str, Mapping[str, Totals]]) -> pd.DataFrame:
    """Change of each placement's cost in dollars for each modelling choice: one row per choice."""
    rows = [
        {"choice": choice, **{name: usd(found[name].cost - base[name].cost) for name in base}}
        for choice, found in changed.items()
    ]
    return pd.DataFrame(rows)


def diagnosis_table(diagnosis: Diagnosis) -> pd.DataFrame:
    """Misses by cause with a suggested fix, most expensive first; only causes that occur."""
    within = diagnosis.within()
    rows = [
        {
            "cause": cause,
            "by": CAUSES[cause].by,
            "misses": count,
            "tokens": tokens,
            "usd": usd(money),
            "within_usd": usd(within[cause]),
            "fix": CAUSES[cause].fix,
        }
        for cause, (count, tokens, money) in diagnosis.causes().items()
    ]
    return pd.DataFrame(rows, columns=["cause", "by", "misses", "tokens", "usd", "within_usd", "fix"])


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """The causes of a trace's misses as Markdown: table, sums, and how they add up."""
    paid, perfect = usd(diagnosis.cost), usd(diagnosis.perfect)
    lines = [
        f"Input costs ${paid:.4f}. A perfect cache, which reads every block that an earlier request of the same "
        f"workspace sent, pays ${perfect:.4f}; the causes add up to the difference of "
        f"${usd(diagnosis.cost - diagnosis.perfect):.4f}."
    ]
    if not diagnosis.findings:
        lines.append("Misses: none.")
    else:
        table = diagnosis_table(diagnosis)
        table["tokens"], table["usd"] = table["tokens"].map("{:,}".format), table["usd"].map("{:.4f}".format)
        hidden = table.pop("within_usd")
        if hidden.any():
            table.insert(5, "in the changed block, usd", hidden.map("{:.4f}".format))
        sums = diagnosis.fixable()
        lines += [
            frame_table(table),
            "By who can avoid them: "
            + ", ".join(f"{by} ${usd(sums.get(by, 0)):.4f}" for by in FIXABLE)
            + ".",
            *_first_examples(diagnosis.findings),
        ]
        if hidden.any():
            lines.append(
                "In the changed block: only a date, a time, a number or a random id in it changed. Split off and moved "
                f"to the end it would leave the rest of it to be read, at most ${hidden.sum():.4f} more: no part "
                "of the difference, which goes by whole blocks."
            )
    asked = [finding for finding in diagnosis.findings if finding.agrees is not None]
    if asked:
        agree = sum(bool(finding.agrees) for finding in asked)
        lines.append(
            f"The API gave its own reason for {counted(len(asked), 'finding')} here and agrees with {agree}."
        )
    if diagnosis.elsewhere:
        saving = usd(sum(finding.cost for finding in diagnosis.elsewhere))
        lines.append(
            f"{counted(len(diagnosis.elsewhere), 'prompt')} had been sent in another workspace only, which no cache "
            f"shares: ${saving:.4f}, not part of the difference."
        )
    return "\n".join(f"{line}\n" if not line.startswith("- ") else line for line in lines)


def _first_examples(findings: Sequence[Finding]) -> list[str]:
    """The first request of every cause, with what changed and what it cost."""
    first: dict[str, Finding] = {}
    for finding in findings:
        first.setdefault(finding.cause, finding)
    lines = []
    for cause, finding in first.items():
        place = f" at {finding.place}" if finding.place else ""
        against = f", compared with {finding.compared}" if finding.compared else ""
        behind = (
            f"; {finding.behind:,} tokens behind it were not read. With what changed at the end, "
            f"{counted(finding.blocks, 'unchanged block')} of the request would have been"
            if finding.place
            else ""
        )
        if finding.within:
            behind += f", and up to {finding.within:,} tokens of the block itself"
        lines.append(
            f"- {cause}, first in {finding.request}{against}{place}: {finding.detail}{behind} "
            f"({finding.tokens:,} tokens, ${usd(finding.cost):.6f})"
        )
    return [*lines[:-1], f"{lines[-1]}\n"]


def findings_table(diagnosis: Diagnosis) -> pd.DataFrame:
    """Every miss; the prompts of other workspaces last, which no cause holds."""
    rows = [
        {
            "request": finding.request,
            "compared_with": finding.compared,
            "cause": finding.cause,
            "by": CAUSES[finding.cause].by if finding.cause in CAUSES else "",
            "place": finding.place,
            "detail": finding.detail,
            "behind_tokens": finding.behind,
            "unchanged_blocks": finding.blocks,
            "within_tokens": finding.within,
            "within_usd": usd(finding.within_cost),
            "tokens": finding.tokens,
            "usd": usd(finding.cost),
            "api_reason": finding.api_reason,
            "api_agrees": "" if finding.agrees is None else "yes" if finding.agrees else "no",
        }
        for finding in [*diagnosis.findings, *diagnosis.elsewhere]
    ]
    names = [
        "request",
        "compared_with",
        "cause",
        "by",
        "place",
        "detail",
        "behind_tokens",
        "unchanged_blocks",
        "within_tokens",
        "within_usd",
    ]
    return pd.DataFrame(rows, columns=[*names, "tokens", "usd", "api_reason", "api_agrees"])


def bill_row(bill: Bill) -> dict[str, Any]:
    """The row "as billed" of the cost table."""
    exact = Range(bill.totals, low=bill.totals.cost, high=bill.totals.cost)
    return cost_row(AS_BILLED, exact, bill.plain)


def bill_text(bill: Bill) -> str:
    """How the bill and the simulation as sent compare, as Markdown."""
    wrong, billed = len(bill.differences), bill.totals.requests
    lines = [
        f"as_billed: the usage that the API reported for {billed} of {counted(bill.requests, 'request')}, at list "
        f"prices. The simulation as sent gives another usage on {counted(wrong, 'request')}."
    ]
    if wrong:
        delta = usd(sum(found.cost for found in bill.differences))
        lines[0] += f" Together the bill is {delta:+.6f} USD of input away from it."
        lines.append(frame_table(_short(differences_table(bill).head(20))))
        if wrong > 20:
            lines.append(f"The first 20 of {wrong}; differences.csv has all.")
    return "\n".join(f"{line}\n" for line in lines)


def differences_table(bill: Bill) -> pd.DataFrame:
    """Every request on which the simulation and the bill differ."""
    names = ("read", "write_5m", "write_1h", "uncached")
    rows = [
        {
            "request": found.request,
            **{f"billed_{name}": getattr(found.billed, name) for name in names},
            **{f"modelled_{name}": getattr(found.modelled, name) for name in names},
            "billed_minus_modelled_usd": usd(found.cost),
            "why": found.why,
        }
        for found in bill.differences
    ]
    columns = [f"{side}_{name}" for side in ("billed", "modelled") for name in names]
    return pd.DataFrame(rows, columns=["request", *columns, "billed_minus_modelled_usd", "why"])


def _short(frame: pd.DataFrame) -> pd.DataFrame:
    """The differences with one column per side."""
    names = ("read", "write_5m", "write_1h", "uncached")
    table = pd.DataFrame({"request": frame["request"]})
    for side in ("billed", "modelled"):
        columns = [frame[f"{side}_{name}"] for name in names]
        table[f"{side}: {', '.join(names)}"] = [
            ", ".join(map(str, row)) for row in zip(*columns, strict=True)
        ]
    table["USD"] = frame["billed_minus_modelled_usd"].map("{:+.6f}".format)
    table["why"] = frame["why"]
    return table


def article_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The article's ten turns, recomputed next to the article's figures."""
    return pd.DataFrame(
        [
            {
                "reading": entry["reading"],
                "meaning": entry["meaning"],
                "recomputed_usd": dollars(entry["nano_usd"], 5),
                "of_uncached": round(entry["of_uncached"], 4),
                "article_usd": dollars(entry["article_nano_usd"], 4) if entry["article_nano_usd"] else "",
            }
            for entry in rows
        ]
    )
