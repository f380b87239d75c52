"""Charts of the rows of modelled runs, by the name of their CSV file: `roofline.csv`, and `rows.csv` of two_layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from kvbench.report import style
from kvbench.report.page import Column, Explorer
from kvbench.report.style import Style

_DENSE = "var(--dense)"  # the page's own, light or dark
# what is asked of two_layer: sessions per day, three to a decade
_STEPS = (1, 2, 5)

_ROOFLINE = {
    "name": Column("method and budget"),
    "model": Column("model"),
    "device": Column("device"),
    "length": Column("prompt, tokens", log=True),
    "batch": Column("batch"),
    "kept": Column("tokens kept"),
    "resident_mb": Column("cache of a sequence, MB", log=True),
    "read_mb": Column("cache read per step, MB", log=True),
    "step_ms": Column("ms per token at the batch", log=True),
    "max_batch": Column("largest batch", log=True),
    "tokens_per_s_max": Column("tokens per s, largest batch", log=True),
    "usd_per_million_decode_max": Column("$ per million tokens, decode only, largest batch", log=True),
    "usd_per_million_whole_max": Column("$ per million tokens, whole, largest batch", log=True),
    "usd_per_million_whole": Column("$ per million tokens, whole, at the batch", log=True),
    "prefill_s": Column("prefill, s"),
    "usd_per_hour": Column("rent, $ per hour"),
    "matched": Column("budget from"),
}
_TWO_LAYER = {
    "how": Column("how"),
    "layer": Column("layer"),
    "sessions": Column("sessions per day", log=True),
    "usd": Column("$ per session", log=True),
    "low": Column("$ per session, least"),
    "high": Column("$ per session, most"),
    "devices": Column("devices"),
    "capacity": Column("sessions per day of a device"),
    "reused": Column("share of prompt tokens reused"),
    "first_token_p95_s": Column("first token, s (95th percentile)"),
    "basis": Column("basis"),
}


def roofline(frame: pd.DataFrame) -> Explorer:
    """Time, batch and dollars by length of the prompt, a panel per device.

    Args:
        frame: rows of roofline.csv.
    """
    # a column of whole numbers and gaps is read as floats
    budget = frame["budget"].map(lambda value: "" if pd.isna(value) else str(value).removesuffix(".0"))
    frame = frame.assign(name=(frame["method"] + " " + budget).str.strip())
    names = [name for name in _ROOFLINE if name in frame]
    ups = [
        "usd_per_million_whole_max",
        "usd_per_million_decode_max",
        "step_ms",
        "max_batch",
        "tokens_per_s_max",
    ]
    return Explorer(
        caption="Modelled: a point is a method on a device at a length of the prompt. Point at one for its numbers.",
        rows=_plain(frame[names]),
        columns={name: _ROOFLINE[name] for name in names},
        series="name",
        styles=_looks(list(frame["name"])),
        table=[name for name in names if name not in ("usd_per_hour", "matched")],
        x=["length", "resident_mb", "read_mb"],
        y=[name for name in [*ups, "read_mb", "resident_mb"] if frame[name].notna().any()],
        panel=["model", "device"],
        filters=["model", "device", "length", "name"],
        hover=[name for name in names if name not in ("prefill_s",)],
        folded=["batch", "kept", "prefill_s"],
    )


def two_layer(frame: pd.DataFrame) -> Explorer:
    """Dollars per session by sessions per day, at the API and on devices that are rented whole.

    Args:
        frame: rows of rows.csv.
    """
    rows = [point for row in frame.to_dict("records") for point in _points(row, _days(frame))]
    return Explorer(
        caption="Modelled unless the basis says measured. A device is rented whole: few sessions pay for its idle "
        "hours, and one more device makes all of them dearer for a while. Point at one for its numbers.",
        rows=rows,
        columns=_TWO_LAYER,
        series="how",
        styles=_looks([str(name) for name in frame["how"]]),
        table=[
            "how",
            "layer",
            "sessions",
            "usd",
            "devices",
            "capacity",
            "reused",
            "first_token_p95_s",
            "basis",
        ],
        x=["sessions"],
        y=["usd"],
        intervals={"usd": ("low", "high")},
        filters=["layer", "sessions", "how"],
        hover=["how", "sessions", "usd", "devices", "capacity", "reused", "first_token_p95_s", "basis"],
    )


def _days(frame: pd.DataFrame) -> list[int]:
    """Sessions per day to show, to beyond what a device of any kind can serve."""
    capacity = frame["sessions_per_day"].max() if "sessions_per_day" in frame else math.nan
    most = 4 * capacity if capacity and math.isfinite(capacity) else 1000
    return [step * 10**e for e in range(1 + int(math.log10(most))) for step in _STEPS if step * 10**e <= most]


def _points(row: dict[Any, Any], days: list[int]) -> Iterator[dict[str, Any]]:
    """A way's cost at each number of sessions; none for a way that cannot serve any."""
    capacity = row.get("sessions_per_day")
    hosted = row["layer"] == "model"
    if hosted and not (capacity and math.isfinite(capacity)):
        return
    shared = {name: row.get(name) for name in ("how", "layer", "reused", "first_token_p95_s", "basis")}
    for count in days:
        if not hosted:
            bounds = {"low": row["low"], "high": row["high"]} if row["low"] != row["high"] else {}
            yield shared | bounds | {"sessions": count, "usd": row["usd_per_session"]}
            continue
        devices = math.ceil(count / float(str(capacity)))
        # the rent of a day is what a full device costs
        usd = devices * row["usd_per_session"] * float(str(capacity)) / count
        yield shared | {"sessions": count, "usd": usd, "devices": devices, "capacity": capacity}


def _looks(names: list[str]) -> dict[str, Style]:
    """The looks of the figures; dense is as dark or light as the page's text."""
    looks = style.styles(names)
    return {name: look for name, look in looks.items() if name != "dense"} | {
        "dense": Style(_DENSE, looks["dense"].marker, looks["dense"].line)
    }


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


#: charts by the columns that a CSV file must have
KNOWN: dict[str, tuple[frozenset[str], Callable[[pd.DataFrame], Explorer]]] = {
    "roofline": (
        frozenset({"method", "budget", "length", "max_batch", "usd_per_million_whole_max"}),
        roofline,
    ),
    "rows": (frozenset({"layer", "how", "usd_per_session", "low", "high"}), two_layer),
}


def chart(name: str, frame: pd.DataFrame) -> Explorer | None:
    """The charts of a CSV file, or None where there are none for it.

    Args:
        name: of the file, without suffix.
        frame: its rows.
    """
    needed, draw = KNOWN.get(name, (frozenset({""}), roofline))
    return draw(frame) if needed <= set(frame.columns) else None
