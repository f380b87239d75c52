"""The comparison as a table, a figure and a list of limitations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kvbench.config.files import write
from kvbench.config.text import counted
from kvbench.config.typed import as_yaml
from kvbench.experiments.two_layer import claude_api, figure
from kvbench.experiments.two_layer.breakeven import BreakEven, break_even
from kvbench.experiments.two_layer.compare import Comparison, LengthCase, ModelCase, RentCase, cheapest_way
from kvbench.experiments.two_layer.config import LAYERS, TwoLayerConfig, load_text
from kvbench.experiments.two_layer.simulate import COUNTED
from kvbench.report.format import csv_text, frame_table
from kvbench.report.plots import save

if TYPE_CHECKING:
    from kvbench.experiments.two_layer.hosted import CopyCost, ServingCost

NEVER = "never"

COPIES = """## What a dense prefix cache beside copies takes

For the longest prompt. The whole cache stays in the prefix cache; the copies lie beside it.
"""

LEFT_OUT = (
    "**Quality of the answers, above all.** The two layers do not run the same model, and nothing here says that their "
    "answers are worth the same. What a compression of the cache does to them is not in a dollar either: run "
    "`kvbench run experiment=reference` with your own task before you believe a row with a budget.",
    "**The time of a device is a lower bound** where it says modelled: products and bytes at rates that good kernels "
    "reach, no launches, no scheduler, no tokenizer, no network. A throughput that you give (`measured`) is yours.",
    "**Latency.** The utilisation is an assumption; what it means for waiting is in the table (first token). Prefill "
    "is not cut into chunks: a long prompt holds up everybody behind it.",
    "**Load.** Sessions begin at random, equally often at all hours. Peaks need devices that idle at night: lower the "
    "utilisation.",
    "**The prefix cache** is taken to drop what was used longest ago, to have all the memory beside the weights, and "
    "to keep nothing in host memory or on disk, which would help it under load. A dense prefix cache beside compressed "
    "copies is a design that is modelled here, not one that a server is known to offer.",
    "**What else running a model costs**: people, a second device for failures, storage, traffic, idle time while "
    "starting; and discounts for spot or reserved devices, other offers than the one in conf/hardware.",
    "**Tokens.** Both sides are given the same numbers; the two tokenizers differ, by tens of percent on some texts.",
    "**What sessions share** (tools, system prompt) is reused on neither side: every session begins cold.",
    "**Batch, fast mode, volume discounts and rate limits** of the API; more than one device per model (a model that "
    "does not fit one is refused); embeddings and the vector store, which both sides need.",
    "**The script that plays the model** decides how often a question is rewritten and how long answers are: see the "
    "last table for longer ones.",
)


def write_report(cfg: TwoLayerConfig, found: Comparison) -> Path:
    """Writes table.md, rows.csv, config.yaml and the figure into the run's folder; returns the Markdown file."""
    folder = Path(cfg.run_dir)
    write(folder / "rows.csv", csv_text(rows(cfg, found), "%.6g"))
    if cfg.layer == "both":
        save(figure.per_session(found, cfg), folder / "figures", "per_session", figure.HEADING)
    write(folder / "config.yaml", as_yaml(cfg, run_dir=None))
    return write(folder / "table.md", "\n".join(_parts(cfg, found)) + "\n")


def rows(cfg: TwoLayerConfig, found: Comparison) -> pd.DataFrame:
    """One row per placement and per way to serve; unformatted."""
    lines: list[dict[str, Any]] = [
        {
            "layer": "api",
            "how": priced.name,
            "usd_per_session": priced.usd,
            "low": priced.low,
            "high": priced.high,
            "reused": priced.read,
            "basis": "modelled",
        }
        for priced in found.priced
    ]
    for served in found.served:
        line: dict[str, Any] = {
            "layer": "model",
            "how": served.name,
            "usd_per_session": served.fleet.usd_per_session,
            "low": served.usd_range[0],
            "high": served.usd_range[1],
            "reused": served.mean("reused"),
            "device_s": served.mean("seconds"),
            "device_s_alone": served.quiet.seconds if served.quiet else None,
            "prefill": served.mean("prefill"),
            "batch": served.mean("batch"),
            "batch_limit": served.limit,
            "first_token_p95_s": served.mean("first_token"),
            "first_token_p95_s_low": min((load.first_token for load in served.draws), default=None),
            "first_token_p95_s_high": max((load.first_token for load in served.draws), default=None),
            "busy": served.busy,
            "sessions_per_day": served.fleet.capacity,
            "basis": served.basis,
            "note": served.note,
        }
        if cfg.layer == "both":
            for name, price in (("", found.cheapest.usd), ("_none", found.plain.usd)):
                even = break_even(price, served.fleet)
                line |= {f"break_even{name}": even.first, f"always{name}": even.always}
        lines.append(line)
    return pd.DataFrame(lines)


def _parts(cfg: TwoLayerConfig, found: Comparison) -> list[str]:
    both = cfg.layer == "both"
    parts = [f"# Two layers: {' against '.join(_layers(cfg))}\n", _sessions(cfg, found), _reading(cfg, found)]
    parts.append(frame_table(_table(cfg, found)))
    if found.copies:
        parts += [COPIES, _copies(found.copies)]
    if both:
        parts += [_verdict(found), "![dollars per session](figures/per_session.png)\n"]
        parts += ["## What it leaves out\n", *(f"- {line}" for line in LEFT_OUT), ""]
        parts += [_rent_title(found), _rents(found.rent_cases)]
        parts += ["## If the answers were longer\n", _lengths(found.length_cases)]
        parts += [_models_title(found), _models(found.model_cases)]
    else:
        parts += ["## What it leaves out\n", *(f"- {line}" for line in LEFT_OUT)]
    if found.problems:
        parts += ["## Defects of the trace\n", *(f"- {line}" for line in found.problems)]
    return parts


def _layers(cfg: TwoLayerConfig) -> list[str]:
    return [text for name, text in LAYERS.items() if cfg.layer in (name, "both")]


def _sessions(cfg: TwoLayerConfig, found: Comparison) -> str:
    requests = [request for session in found.recorded for request in session]
    count = len(found.recorded)
    source = (
        f"trace {Path(cfg.trace).name}"
        if cfg.trace
        else f"generated, layout {cfg.layout}, {counted(cfg.turns, 'turn')} each"
    )
    return (
        f"{counted(count, 'recorded session')} ({source}); per session "
        f"{counted(len(requests) / count, 'request', '.0f')}, "
        f"{sum(request.prompt for request in requests) / count:,.0f} prompt tokens (longest prompt "
        f"{max(request.prompt for request in requests):,}), "
        f"{sum(request.output for request in requests) / count:,.0f} generated. "
        f"Tokens counted by: {', '.join(found.sources)}.\n"
    )


def _reading(cfg: TwoLayerConfig, found: Comparison) -> str:
    lines = []
    if found.priced:
        lines.append(
            f"api: {', '.join(found.models)} at list prices, input and output; range: undocumented points turned. All "
            "of it is modelled. planner: the cheapest legal placement, found by looking at the whole trace; devices "
            "are compared with what can be chosen beforehand."
        )
    if found.served:
        lines.append(
            f"model: {found.title} at {found.served[0].fleet.usd_per_hour:.2f} USD per hour ({found.rent}), rented "
            f"whole and around the clock, {load_text(cfg)}. USD per session, device s (seconds of the device per "
            f"session) and all that follows are means of {counted(cfg.draws, 'draw')} of at least {COUNTED} sessions "
            "that begin at random, to two digits; range: the cheapest and the dearest draw. alone: seconds when there "
            "is no other session, batch 1; prefill: the share of prefill and compression in device s; reused: share of "
            "the prompt tokens that a cache had; batch: sequences per decode step, from the load; first token: seconds "
            "that one request in twenty exceeds (range of the draws)."
        )
        lines.append(
            "Without a prefix cache every prompt is prefilled again. *prefix cache*: what is cached is what decoding "
            "reads, so it has to be whole. *dense prefix cache*: the whole cache is kept for the next request, and "
            "each request is decoded from a compressed copy of it, made anew because the question chooses what is kept."
            + (f" No prefix cache for {'; '.join(found.without_prefix)}." if found.without_prefix else "")
        )
    if cfg.layer == "both":
        lines.append(
            "break-even: sessions per day from which on devices cost no more than the cheapest placement, "
            f"{found.cheapest.name}, or than no cache_control. In brackets, where it differs: from where on for good, "
            "because right after a device was added they may be dearer again."
        )
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _table(cfg: TwoLayerConfig, found: Comparison) -> pd.DataFrame:
    lines = [
        {
            "layer": "api",
            "how": priced.name,
            "USD per session": f"{priced.usd:.4f}",
            "range": _span(priced),
            "reused": f"{priced.read:.1%}",
            "basis": "modelled",
        }
        for priced in found.priced
    ] + [_served_line(cfg, found, served) for served in found.served]
    return pd.DataFrame(lines).fillna("")


def _served_line(cfg: TwoLayerConfig, found: Comparison, served: ServingCost) -> dict[str, str]:
    line = {"layer": "model", "how": served.name, "basis": served.basis}
    if served.note:
        return line | {"USD per session": served.note}
    if not served.draws or served.quiet is None:
        return line | {"USD per session": "cannot serve a session a day"}
    waits = [load.first_token for load in served.draws]
    line |= {
        "USD per session": digits(served.fleet.usd_per_session),
        "range": _range(*served.usd_range),
        "reused": f"{served.mean('reused'):.0%}",
        "device s": digits(served.mean("seconds")),
        "alone": digits(served.quiet.seconds),
        "prefill": f"{served.mean('prefill'):.0%}",
        "batch": digits(served.mean("batch")),
        "first token s": f"{digits(served.mean('first_token'))} ({_range(min(waits), max(waits))})",
        "sessions per day": digits(served.fleet.capacity),
    }
    if cfg.layer == "both":
        line[f"break-even with {found.cheapest.name}"] = _even(break_even(found.cheapest.usd, served.fleet))
        line["with no cache_control"] = _even(break_even(found.plain.usd, served.fleet))
    return line


def digits(value: float) -> str:
    """A number to two significant digits, which is what a few draws can say."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{value:#.2g}"


def _range(low: float, high: float) -> str:
    return digits(low) if digits(low) == digits(high) else f"{digits(low)} to {digits(high)}"


def _usd(value: float) -> str:
    return "cannot serve a session a day" if math.isinf(value) else digits(value)


def _even(even: BreakEven) -> str:
    if even.first is None:
        return NEVER
    if even.always == even.first:
        return f"{even.first:,}"
    return f"{even.first:,} ({NEVER if even.always is None else digits(even.always)})"


def _verdict(found: Comparison) -> str:
    best, cheapest = found.best, found.cheapest
    even = break_even(cheapest.usd, best.fleet)
    if even.first is None:
        return (
            f"{best.name} never breaks even with {cheapest.name}: a device serves {digits(best.fleet.capacity)} "
            f"sessions per day, and its rent buys {best.fleet.usd_per_day / cheapest.usd:,.0f} at the API.\n"
        )
    # a more expensive API breaks even at fewer sessions
    ends = list(
        dict.fromkeys(_even(break_even(price, best.fleet)) for price in (cheapest.high, cheapest.low))
    )
    turned = f" ({' or '.join(ends)} with the undocumented points turned)" if len(ends) > 1 else ""
    return (
        f"The cheapest way to serve, {best.name}, breaks even with {cheapest.name} at {_even(even)} sessions per "
        f"day{turned}. Below that the API is cheaper, whatever is done to the cache of a model of one's own: an idle "
        "device costs the same with every method. The methods differ in how many sessions the device then serves. The "
        "dashed line of the figure is both layers together: devices for the base load, the API for the rest.\n"
    )


def _rent_title(found: Comparison) -> str:
    return (
        "## Rent and utilisation\n\n"
        f"Sessions per day at which {found.best.name} breaks even with {found.cheapest.name}. The rent moves the "
        "break-even; the utilisation decides how many sessions a device serves, and so whether it gets there at all. "
        "Sessions per day that grow less than the utilisation: the sessions crowd each other out of the prefix cache.\n"
    )


def _rents(rent_cases: Sequence[RentCase]) -> str:
    lines: dict[float, dict[str, str]] = {}
    for cell in rent_cases:
        line = lines.setdefault(
            cell.utilisation, {"busy": f"{cell.utilisation:.0%}", "sessions per day": digits(cell.capacity)}
        )
        line[f"{cell.usd_per_hour:.2f} USD per hour"] = _even(cell.even)
    return frame_table(pd.DataFrame(list(lines.values())))


def _copies(copies: Sequence[CopyCost]) -> str:
    lines = [
        {
            "how": found.name,
            "whole cache GB": f"{found.whole / 1e9:.1f}",
            "copy GB": digits(found.copy / 1e9),
            "read GB per step": digits(found.read / 1e9),
            "instead of": f"{found.read_whole / 1e9:.1f}",
            "ms to make the copy": digits(1e3 * found.choose_s),
            "tokens always computed": str(found.fresh),
        }
        for found in copies
    ]
    return frame_table(pd.DataFrame(lines))


def _models_title(found: Comparison) -> str:
    best = found.best
    return (
        "## Another Claude model\n\n"
        f"The same sessions at the list prices of other models, against {best.name}. USD per million tokens; a price "
        "holds since the date beside it. Tokens and answers stay as recorded; another tokenizer counts otherwise, and "
        "a cheaper model may need more of them.\n"
    )


def _models(cases: Sequence[ModelCase]) -> str:
    lines = []
    for case in cases:
        line = {"model": case.model}
        if case.rates is None or case.cheapest is None or case.even is None:
            lines.append(line | {"USD per session": case.note})
            continue
        since = f" since {case.since}" if case.since else ""
        line["input / read / output"] = " / ".join(f"{rate:g}" for rate in case.rates) + since
        line["cheapest placement"] = case.cheapest.name
        line["USD per session"] = f"{case.cheapest.usd:.4f}"
        line["range"] = _span(case.cheapest)
        line["break-even"] = _even(case.even)
        lines.append(line)
    return frame_table(pd.DataFrame(lines).fillna(""))


def _span(priced: claude_api.PlacementCost) -> str:
    return "" if priced.low == priced.high else f"{priced.low:.4f} to {priced.high:.4f}"


def _lengths(answers: Sequence[LengthCase]) -> str:
    lines = []
    for found in answers:
        best, cheapest = cheapest_way(found.served), claude_api.cheapest(found.priced)
        line = {
            "answers": f"x{found.times}",
            "generated tokens per session": f"{found.tokens:,.0f}",
            f"api: {cheapest.name}": f"{cheapest.usd:.4f}",
        }
        line |= {served.name: _usd(served.fleet.usd_per_session) for served in found.served}
        line["break-even"] = f"{_even(break_even(cheapest.usd, best.fleet))} ({best.name})"
        lines.append(line)
    text = "USD per session, devices as busy as they may be. Prompts stay as recorded.\n\n"
    return text + frame_table(pd.DataFrame(lines).fillna(""))
