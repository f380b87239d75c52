"""Result tables: one row per placement with its range, and the effect of each open point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.misses import FIXES, Diagnosis
from kvbench.claude.prices import NANO, dollars
from kvbench.claude.simulate import Range, Totals
from kvbench.report.format import frame_table


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
    "output. USD: with every undocumented point at its literal reading; range: those points turned, see below. "
    "of no markers: cost of the same requests without cache_control = 100 %. tokens read: share of the input "
    "tokens that came from the cache. peak_itpm: most input tokens in one minute of the clock that count towards "
    "the rate limit. undecided: requests whose marked prefix is within 5 % of the model's minimum by a count that "
    "is an estimate; they may or may not be cached.\n"
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
    """Misses by reason with a suggested fix, most expensive first; only reasons that occur."""
    rows = [
        {"reason": reason, "misses": count, "at_most_usd": usd(money), "fix": FIXES[reason]}
        for reason, (count, money) in diagnosis.reasons().items()
    ]
    return pd.DataFrame(rows, columns=["reason", "misses", "at_most_usd", "fix"])


def findings_table(diagnosis: Diagnosis) -> pd.DataFrame:
    """Every miss."""
    rows = [
        {
            "request": finding.request,
            "reason": finding.reason,
            "detail": finding.detail,
            "tokens": finding.tokens,
            "at_most_usd": usd(finding.at_most),
        }
        for finding in diagnosis.findings
    ]
    return pd.DataFrame(rows, columns=["request", "reason", "detail", "tokens", "at_most_usd"])


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
