"""Tables and figure of a bill."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kvbench.claude.files import files_of
from kvbench.claude.plots import bill_by_day
from kvbench.claude.prices import PriceBook
from kvbench.claude.usage import tables
from kvbench.claude.usage.account import Account, Pings, account
from kvbench.claude.usage.open import SUFFIXES, BilledCalls, read_calls
from kvbench.config.files import write
from kvbench.config.text import counted
from kvbench.config.typed import as_yaml
from kvbench.experiments.claude_bill.config import BillConfig
from kvbench.report.format import csv_text, escaped
from kvbench.runs.progress import ProgressFactory, staged

GUIDE = (
    "Paid: the usage that the API reported, at list prices of its day; your contract, taxes and credits are not in it. "
    "Without caching: the same calls with every input token at the base price. Tokens are input tokens."
)
ASSUMPTIONS = (
    "Each conversation is taken alone; a sub-agent is a conversation of its own. What another conversation kept alive "
    "shows as read tokens and is no loss.",
    "A gap runs from the start of one call to the start of the next: a lifetime begins with the request that writes or "
    "reads the entry.",
    "A loss is what the call before had in the cache and this one did not read; where the prompt itself became another "
    "one, it is an upper bound.",
    "An entry lives as long as its lifetime and no longer; in truth at least as long.",
)
MOST = 200  # defects that the page shows; problems.txt has all


def write_report(cfg: BillConfig, progress: ProgressFactory) -> Path:
    """Writes tables, figure and config.yaml into the run's folder; returns the Markdown file.

    Args:
        cfg: the configuration.
        progress: makes the progress display, with a line for the files and one for the calls.
    """
    assert cfg.trace is not None  # the configuration refuses it
    prices = PriceBook.load(cfg.prices)
    path = Path(cfg.trace).expanduser()
    pings = Pings(cfg.ping_every, cfg.ping_for)
    files = counted(len(list(files_of(path, SUFFIXES))), "file")
    with staged(progress, (files, "the calls, and what other settings would have cost")) as begin:
        begin()
        found = read_calls(path, prices, format=cfg.format, input_tokens=cfg.input_tokens, strict=cfg.strict)
        begin()
        result = account(found.calls, prices, pings)
    folder = Path(cfg.run_dir)
    models = tables.sums(result.models, result.total)
    instead = tables.instead(result, pings)
    write(folder / "losses.csv", csv_text(tables.losses(result)))
    write(folder / "models.csv", csv_text(models))
    write(folder / "instead.csv", csv_text(instead))
    days = tables.days(found.calls, prices)
    write(folder / "days.csv", csv_text(days))
    bill_by_day(days, folder / "figures" / "days.svg")
    write(folder / "problems.txt", "".join(f"{line}\n" for line in found.problems.lines))
    write(folder / "config.yaml", as_yaml(cfg))
    return write(folder / "table.md", _text(path, found, result, models, instead))


def _text(
    path: Path, found: BilledCalls, result: Account, models: pd.DataFrame, instead: pd.DataFrame
) -> str:
    total = result.total
    saved = total.plain - total.paid
    digits = tables.digits_of(total.paid)
    share = f" ({abs(saved) / total.plain:.0%})" if total.plain else ""
    caching = f"caching {'saved' if saved >= 0 else 'cost'} {tables.usd(abs(saved)):,.{digits}f} USD{share}"
    parts = [
        f"# What {escaped(path.name)} cost\n",
        f"{counted(total.calls, 'call')}: **{tables.usd(total.paid):,.{digits}f} USD** at list prices. Without caching "
        f"{tables.usd(total.plain):,.{digits}f} USD: {caching}.\n",
        f"{GUIDE}\n",
        "## By model\n",
        tables.sums_text(models, digits),
    ]
    if len(result.agents) > 1:
        parts += [
            "## Main conversations and sub-agents\n",
            tables.sums_text(tables.sums(result.agents, total), digits),
        ]
    parts += [
        "## What was paid again, and why\n",
        tables.losses_text(result, digits),
        "## What other settings would have cost\n",
        tables.instead_text(instead, digits),
    ]
    if total.recorded_usd:
        parts.append(
            f"The files themselves say {total.recorded_usd:,.2f} USD, list prices {tables.usd(total.paid):,.2f} USD.\n"
        )
    parts += ["## What this rests on\n", *(f"- {line}" for line in _notes(found, result)), ""]
    if found.problems.lines:
        lines = found.problems.lines
        parts += ["## Defects\n", *(f"- {escaped(line)}" for line in lines[:MOST])]
        parts += [f"- and {len(lines) - MOST:,} more in problems.txt"] if len(lines) > MOST else []
        parts.append("")
    return "\n".join(parts)


def _notes(found: BilledCalls, result: Account) -> list[str]:
    lines = [f"Read: {source}." for source in found.sources]
    lines += [*found.notes, *ASSUMPTIONS]
    if result.copies:
        lines.append(
            f"Copies of answers in other files (resumed conversations), not counted again: {result.copies:,}."
        )
    if result.sessionless:
        lines.append(
            f"Calls without a conversation, where gaps and switches cannot be seen: {result.sessionless:,}."
        )
    lines += [f"Left out, {escaped(what)}: {count:,}." for what, count in sorted(found.left.items())]
    return lines
