"""The experiment `vllm_load`: latency and goodput against the rate at which sessions arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl

from kvbench.config.errors import UserError
from kvbench.report import style
from kvbench.report.format import Table
from kvbench.report.plots import save
from kvbench.runs.store import Record, digest
from kvbench.vllm import measure, page
from kvbench.vllm.arrivals import Session
from kvbench.vllm.campaign import Campaign, Job, Ready, of_kind
from kvbench.vllm.measure import LoadConfig
from kvbench.vllm.prompts import Asked, AskedConfig
from kvbench.vllm.servers import Setup
from kvbench.vllm.shown import milliseconds, number

VERSION = "vllm_load 1"  # raised when the same setting would give other numbers
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


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """A recorded trace instead of tasks.

    Attributes:
        path: folder or file that `kvbench run experiment=claude_replay` takes; null for tasks.
        shrink: every block gets 1/shrink of its tokens.
        speed: the trace's clock runs so many times faster.
        max_output: longest answer asked for.
    """

    path: str | None = None
    shrink: int = 1
    speed: float = 1.0
    max_output: int = 64


@dataclass(frozen=True, kw_only=True)
class LoadRunConfig(AskedConfig):
    """What arrives where.

    Attributes:
        trace: a recorded trace instead of tasks.
        rates: sessions per second, each a load of its own; null = all at once, or as recorded.
        load: everything else of a load; its rate is that of `rates`.
    """

    trace: TraceConfig = field(default_factory=TraceConfig)
    rates: tuple[float | None, ...] = (0.1,)
    load: LoadConfig = field(default_factory=LoadConfig)

    def __post_init__(self) -> None:
        if not self.rates:
            raise UserError("rates: empty, give rates=[...]")
        for rate in self.rates:
            replace(self.load, rate=rate)
        if bool(self.task) == bool(self.trace.path):
            raise UserError("trace.path: give either task=[...] or trace.path with task=[]")


def run(
    cfg: LoadRunConfig,
    chosen: Sequence[Setup],
    sessions: Sequence[Session],
    source: str,
    warm: Asked | None,
    campaign: Campaign,
) -> list[Record]:
    """Sends the sessions at every rate to every server.

    Args:
        cfg: the configuration.
        chosen: the servers, with their models.
        sessions: what arrives.
        source: where they are from, for captions.
        warm: see `Campaign.run`.
        campaign: where rows go.
    """
    content = digest({"sessions": [asdict(session) for session in sessions]})

    def jobs(setup: Setup) -> Iterator[Job]:
        for rate in cfg.rates:
            load = replace(cfg.load, rate=rate)
            key = {"load": asdict(load), "sessions": content}
            fields = {"rate": rate, "sessions": len(sessions), "most": load.most, "source": source}
            fields["recorded"] = cfg.trace.path is not None
            yield Job("load", f"rate {rate}", key, fields, partial(_load, load, sessions))

    return campaign.run(chosen, jobs, warm)


async def _load(cfg: LoadConfig, sessions: Sequence[Session], ready: Ready) -> Record:
    _, row = await measure.under_load(ready.server, sessions, cfg, ready.cell, stage=ready.stage)
    return row


def write(folder: Path, rows: Sequence[Record], order: Sequence[str]) -> Path:
    """Writes table.md and the figures: one per kind of device.

    Args:
        folder: the run's.
        rows: of `run`.
        order: labels of the setups.

    Returns:
        The Markdown file.
    """
    loads = of_kind(rows, "load")
    tables = []
    for device in dict.fromkeys(row["device"] for row in loads):
        own = [row for label in order for row in loads if (row["setup"], row["device"]) == (label, device)]
        own.sort(key=lambda row: (order.index(row["setup"]), row["rate"] is None, row["rate"] or 0))
        tables.append(table(own, device))
        if any(row["rate"] is not None for row in own):
            save(_figure(own, device), folder / "figures", f"load.{device.replace(' ', '-')}")
    return page.write(folder, "vLLM under load", rows, tables, GUIDE)


def table(rows: Sequence[Record], device: str) -> Table:
    """One line per setup and rate; rows of one device."""
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
        "p90",
    ]
    header += [
        "tokens/s",
        "cached",
        "hits",
        "server TTFT p50",
        "p90",
        "server per token p50",
        "preempted",
        "note",
    ]
    body = []
    for row in rows:
        rate = (
            ("as recorded" if row["recorded"] else "at once") if row["rate"] is None else f"{row['rate']:g}"
        )
        line = [row["setup"], rate, str(row["requests"]), str(row["failed"]), f"{row['good_share']:.0%}"]
        line.append(number(row["goodput_per_s"], ".3f"))
        line += [milliseconds(row[f"ttft_p{p}_s"]) for p in (50, 90, 99)]
        line += [milliseconds(row[f"per_token_p{p}_s"]) for p in (50, 90)]
        line.append(number(row["output_tokens_per_s"], ".1f"))
        line += [_share(row["cached_tokens"], row["prompt_tokens"])]
        line += [_share(row["server_prefix_hits"], row["server_prefix_queries"])]
        line += [milliseconds(row[f"server_{n}_s"]) for n in ("ttft_p50", "ttft_p90", "per_token_p50")]
        body.append([*line, number(row["server_preemptions"], ".0f"), row["note"]])
    first = rows[0]
    caption = (
        f"{first['model']}, vLLM {first['vllm']} on {device}; {first['sessions']} sessions of {first['source']}; at "
        f"most {first['most']} requests at once; first token within {first['ttft_limit_s']:g} s. Milliseconds."
    )
    return Table(f"Load: {device}", caption, header, body)


def _figure(rows: Sequence[Record], device: str) -> style.Figure:
    with mpl.rc_context(style.SETTINGS):
        figure, (ttft, good) = style.panels(2)
        looks = style.styles(row["setup"] for row in rows)
        for label, look in looks.items():
            own = [row for row in rows if row["setup"] == label and row["rate"] is not None]
            if not own:
                continue
            rates = [row["rate"] for row in own]
            shape: dict[str, Any] = {"color": look.colour, "marker": look.marker}
            for percent, line in ((50, "-"), (90, "--")):
                times = [row[f"ttft_p{percent}_s"] for row in own]
                if None not in times:
                    ttft.plot(rates, times, linestyle=line, **shape)
            good.plot(rates, [row["good_share"] for row in own], linestyle="-", **shape)
        ttft.axhline(rows[0]["ttft_limit_s"], color=style.GREY, linestyle=":", linewidth=1)
        ttft.set_title("first token (s): p50 solid, p90 dashed, limit dotted")
        good.set_title("share of turns within the limit")
        good.set_ylim(0, 1.05)
        for axes in (ttft, good):
            axes.set_xlabel("sessions per second")
            axes.set_xlim(0)
        ttft.set_ylim(0)
        drawn = {label: look for label, look in looks.items() if any(row["setup"] == label for row in rows)}
        notes = sorted({row["note"] for row in rows if row["note"]})
        text = (
            f"{rows[0]['model']}, vLLM {rows[0]['vllm']} on {device}; {rows[0]['source']}. {' '.join(notes)}"
        )
        style.legend(figure, style.method_handles(drawn), text)
        return figure


def _share(part: float | None, of: float | None) -> str:
    return f"{part / of:.1%}" if part is not None and of else "-"
