"""Table and figures of `vllm_load`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from kvbench.report import style
from kvbench.report.format import Table, number
from kvbench.report.plots import save
from kvbench.runs.store import Record
from kvbench.vllm import page
from kvbench.vllm.blocks import short_prefix
from kvbench.vllm.campaign import of_kind
from kvbench.vllm.page import milliseconds

GUIDE = (
    "rate: sessions per second, Poisson; `as recorded` keeps the trace's own times, `at once` sends everything at 0. A "
    "turn is due when its session arrives, or its gap after the answer before it; TTFT counts from there, so that "
    "waiting for one of the places of `load.most` counts.",
    "Percentiles are of whole answers; one is given where at least one answer lies beyond it. A turn that fails is not "
    "sent again, and the rest of its session is not sent: both count as failed, and as not good.",
    "good: whole answers whose first token came within the limit, of all turns. goodput: those per second.",
    "cached: prompt tokens that the client was told were in the prefix cache, of all; hits: the same from the server's "
    "counters. server: vLLM's own histograms of the same requests, interpolated inside their buckets, which are "
    "seconds wide where times are long; its clock starts when a request has arrived.",
)
HEADING = "Time to first token and share of turns within the limit, by load."


def write_report(folder: Path, rows: Sequence[Record], order: Sequence[str]) -> Path:
    """Writes table.md and the figures, one per device.

    Args:
        folder: the run's.
        rows: of `run.run`.
        order: labels of the servers.

    Returns:
        The Markdown file.
    """
    loads = of_kind(rows, "load")
    tables = []
    for device in dict.fromkeys(row["device"] for row in loads):
        on_device = [row for row in loads if row["device"] == device and row["setup"] in order]
        on_device.sort(key=lambda row: (order.index(row["setup"]), row["rate"] is None, row["rate"] or 0))
        tables.append(table(on_device, device))
        if any(row["rate"] is not None for row in on_device):
            save(_figure(on_device, device), folder / "figures", f"load.{device.replace(' ', '-')}", HEADING)
    return page.write_page(folder, "vLLM under load", rows, tables, GUIDE)


def table(rows: Sequence[Record], device: str) -> Table:
    """One line per server and rate; rows of one device."""
    header = [
        "setup",
        "rate",
        "turns",
        "failed",
        "good",
        "goodput/s",
        "TTFT p50",
        "p90",
        "p99",
        "per token p50",
    ]
    header += [
        "p90",
        "tokens/s",
        "cached",
        "hits",
        "server TTFT p50",
        "p90",
        "server per token p50",
        "preempted",
    ]
    header += ["note"]
    first = rows[0]
    caption = (
        f"{first['model']}, vLLM {first['vllm']} on {device}; {first['sessions']} sessions of {first['source']}; at "
        f"most {first['most']} requests at once; first token within {first['ttft_limit_s']:g} s. Milliseconds."
    )
    caption = " ".join([caption, *short_prefix(rows)])
    return Table(f"Load: {device}", caption, header, [_line(row) for row in rows])


def _line(row: Record) -> list[str]:
    line = [row["setup"], _rate(row), str(row["requests"]), str(row["failed"]), f"{row['good_share']:.0%}"]
    line.append(number(row["goodput_per_s"], ".3f"))
    line += [milliseconds(row[f"ttft_p{p}_s"]) for p in (50, 90, 99)]
    line += [milliseconds(row[f"per_token_p{p}_s"]) for p in (50, 90)]
    line.append(number(row["output_tokens_per_s"], ".1f"))
    line.append(_share(row["cached_tokens"], row["prompt_tokens"]))
    line.append(_share(row["server_prefix_hits"], row["server_prefix_queries"]))
    line += [milliseconds(row[f"server_{name}_s"]) for name in ("ttft_p50", "ttft_p90", "per_token_p50")]
    return [*line, number(row["server_preemptions"], ".0f"), row["note"]]


def _rate(row: Record) -> str:
    if row["rate"] is None:
        return "as recorded" if row["recorded"] else "at once"
    return f"{row['rate']:g}"


def _figure(rows: Sequence[Record], device: str) -> style.Figure:
    with mpl.rc_context(style.SETTINGS):
        figure, (ttft, good) = style.panels(2)
        looks = style.styles(row["setup"] for row in rows)
        for label, look in looks.items():
            rated = [row for row in rows if row["setup"] == label and row["rate"] is not None]
            if not rated:
                continue
            rates = [row["rate"] for row in rated]
            shape: dict[str, Any] = {"color": look.colour, "marker": look.marker}
            for percent, line in ((50, "-"), (90, "--")):
                times = [row[f"ttft_p{percent}_s"] for row in rated]
                if None not in times:
                    ttft.plot(rates, times, linestyle=line, **shape)
            good.plot(rates, [row["good_share"] for row in rated], linestyle="-", **shape)
        ttft.axhline(rows[0]["ttft_limit_s"], color=style.GREY, linestyle=":", linewidth=1)
        ttft.set_title("first token (s): p50 solid, p90 dashed, limit dotted")
        good.set_title("share of turns within the limit")
        good.set_ylim(0, 1.05)
        for axes in (ttft, good):
            axes.set_xlabel("sessions per second")
            axes.set_xlim(0)
        ttft.set_ylim(0)
        notes = sorted({row["note"] for row in rows if row["note"]})
        text = (
            f"{rows[0]['model']}, vLLM {rows[0]['vllm']} on {device}; {rows[0]['source']}. {' '.join(notes)}"
        )
        # without the style of dense, which is no server
        drawn = {label: look for label, look in looks.items() if any(row["setup"] == label for row in rows)}
        style.legend(figure, style.method_handles(drawn), text)
        return figure


def _share(part: float | None, of: float | None) -> str:
    return f"{part / of:.1%}" if part is not None and of else "-"
