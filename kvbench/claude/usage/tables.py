"""Tables of an account."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from kvbench.claude.prices import NANO, PriceBook
from kvbench.claude.usage.account import CAUSES, FIVE, HOUR, Account, Loss, ModelSum, Pings, plain
from kvbench.claude.usage.call import Call
from kvbench.config.text import counted
from kvbench.report.format import markdown_table

ALL = "all"
CLASSES = ("read", "write_5m", "write_1h", "uncached")
GAPS = (
    ("up to 5 minutes", 0.0, FIVE),
    ("5 minutes to an hour", FIVE, HOUR),
    ("above an hour", HOUR, float("inf")),
)


def digits_of(total: int) -> int:
    """Decimals of dollars for amounts up to a total in nano-dollars: four below ten dollars."""
    return 4 if total < 10 * NANO else 2


def usd(nano: int) -> float:
    """Nano-dollars in dollars, for tables only."""
    return nano / NANO


def sums(parts: Mapping[str, ModelSum], total: ModelSum) -> pd.DataFrame:
    """One row per part, and one for all."""
    return pd.DataFrame(
        [
            {
                "of": name,
                "calls": one.calls,
                "paid_usd": usd(one.paid),
                "output_usd": usd(one.output),
                "without_caching_usd": usd(one.plain),
                "saved_usd": usd(one.plain - one.paid),
                "read": one.usage.read,
                "write_5m": one.usage.write_5m,
                "write_1h": one.usage.write_1h,
                "uncached": one.usage.uncached,
                "output": one.usage.output,
            }
            for name, one in [*sorted(parts.items()), (ALL, total)]
        ]
    )


def sums_text(frame: pd.DataFrame, digits: int) -> str:
    """`sums` as Markdown, with so many decimals of dollars."""
    header = [
        "",
        "calls",
        "paid, USD",
        "of it output",
        "without caching",
        "saved",
        "read",
        "written 5m",
        "written 1h",
        "uncached",
    ]
    rows = [
        [
            str(row["of"]),
            f"{row['calls']:,}",
            *(
                f"{row[name]:,.{digits}f}"
                for name in ("paid_usd", "output_usd", "without_caching_usd", "saved_usd")
            ),
            *(f"{row[name]:,}" for name in ("read", "write_5m", "write_1h", "uncached")),
        ]
        for row in frame.to_dict("records")
    ]
    return markdown_table(header, rows, right=[False, *[True] * 9]) + "\n"


def days(calls: Iterable[Call], prices: PriceBook) -> pd.DataFrame:
    """Dollars per day (UTC) by billing class, and without caching."""
    rows: dict[str, dict[str, float]] = {}
    for call in calls:
        if call.copy:
            continue
        day = datetime.datetime.fromtimestamp(call.t, datetime.UTC).date().isoformat()
        row = rows.setdefault(day, dict.fromkeys((*CLASSES, "output", "without_caching"), 0.0))
        paid, output = prices.cost(call, call.usage)
        rates = prices.rates(call.model, call.t, call.usage.total)
        listed = rates.input_cost(call.usage)
        for name, rate in zip(CLASSES, (rates.read, rates.write_5m, rates.write_1h, rates.base), strict=True):
            # multipliers are the same for all classes
            row[name] += usd(rate * getattr(call.usage, name)) * (paid / listed if listed else 0.0)
        row["output"] += usd(output)
        row["without_caching"] += usd(sum(prices.cost(call, plain(call.usage))))
    return pd.DataFrame([{"day": day, **row} for day, row in sorted(rows.items())])


def losses(found: Account) -> pd.DataFrame:
    """One row per loss."""
    return pd.DataFrame(
        [
            {
                "call": loss.call.id,
                "conversation": loss.call.session,
                "model": loss.call.model,
                "cause": loss.cause,
                "gap_seconds": round(loss.gap, 1),
                "lifetime_seconds": loss.ttl,
                "tokens": loss.tokens,
                "usd": usd(loss.cost),
                "place": loss.call.place,
            }
            for loss in found.losses
        ],
        columns=[
            "call",
            "conversation",
            "model",
            "cause",
            "gap_seconds",
            "lifetime_seconds",
            "tokens",
            "usd",
            "place",
        ],
    )


def losses_text(found: Account, digits: int) -> str:
    """What was paid again, by cause; idle gaps by length; with so many decimals of dollars."""
    groups: list[tuple[str, str, Sequence[Loss]]] = []
    for cause, text in CAUSES.items():
        of_cause = [loss for loss in found.losses if loss.cause == cause]
        if cause != "idle gap":
            groups.append((cause, text, of_cause))
            continue
        for name, low, high in GAPS:
            part = [loss for loss in of_cause if low < loss.gap <= high]
            if part:
                groups.append((f"idle gap, {name}", text, part))
    rows = [
        [
            name,
            f"{len(part):,}",
            f"{sum(x.tokens for x in part):,}",
            f"{usd(sum(x.cost for x in part)):,.{digits}f}",
            text,
        ]
        for name, text, part in groups
        if part
    ]
    if not rows:
        return "Nothing: every call read what the one before it had in the cache.\n"
    return (
        markdown_table(["cause", "calls", "tokens", "USD", ""], rows, right=[False, True, True, True, False])
        + "\n"
    )


def instead(found: Account, pings: Pings) -> pd.DataFrame:
    """What other settings would have cost, in dollars."""
    paid, result = found.total.paid, found.pings
    late = result.cost_after_the_end
    during = result.cost - late
    digits = digits_of(paid)
    rows = [
        ("as billed", paid, ""),
        ("no caching", found.total.plain, "every input token at the base price"),
        (
            "every write for an hour",
            found.all_1h,
            "gaps of 5 minutes to an hour are read; every write costs 2x",
        ),
        (
            "every write for 5 minutes",
            found.all_5m,
            "gaps of 5 minutes to an hour expire; every write costs 1.25x",
        ),
        (
            f"pings every {pings.every:g} s, only in gaps that end",
            paid + during - result.saved,
            f"{counted(result.sent - result.sent_after_the_end, 'ping')} of {usd(during):,.{digits}f} USD keep "
            f"{counted(result.kept, 'gap')} alive; one cannot know which gaps end",
        ),
        (
            f"the same, up to {pings.limit:g} s after every call",
            paid + result.cost - result.saved,
            f"{counted(result.sent_after_the_end, 'ping')} more, of {usd(late):,.{digits}f} USD, after "
            "the last call of a conversation",
        ),
    ]
    return pd.DataFrame(
        [
            {"instead": name, "usd": usd(cost), "change_usd": usd(cost - paid), "how": how}
            for name, cost, how in rows
        ]
    )


def instead_text(frame: pd.DataFrame, digits: int) -> str:
    """`instead` as Markdown, with so many decimals of dollars."""
    rows = [
        [row["instead"], f"{row['usd']:,.{digits}f}", f"{row['change_usd']:+,.{digits}f}", row["how"]]
        for row in frame.to_dict("records")
    ]
    return markdown_table(["", "USD", "change", ""], rows, right=[False, True, True, False]) + "\n"
