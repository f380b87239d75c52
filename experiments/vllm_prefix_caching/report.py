"""Table and figures of `vllm_prefix_caching`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.lines import Line2D

from kvbench.experiments.vllm_prefix_caching.config import WAYS, Way
from kvbench.experiments.vllm_prefix_caching.random_prompts import predicted_hits
from kvbench.report import style
from kvbench.report.format import Table
from kvbench.report.plots import save
from kvbench.runs.store import Record
from kvbench.vllm import page
from kvbench.vllm.blocks import short_prefix

GUIDE = (
    "Everything here is measured, but for `predicted`: whole blocks of the shared prefix, never the last token of a "
    "prompt.",
    "own: every request has a salt of its own and finds nothing, the time without caching. shared: one salt, nothing "
    "cached at the start. warm: one salt, filled by a request before. The prompts are the same in all three.",
    "hits warm: tokens per request as its answer reports them (smallest-largest where they differ). shared found: "
    "requests that found anything. counters: vLLM's own counters say the same sum as the answers.",
    "TTFT: milliseconds from sending a request to its first token, median [20th-80th percentile]. At several requests "
    "at once it holds their waiting for each other inside the server.",
    "same: requests whose greedy answer is the same in all three ways.",
)
# colour, marker, legend
LOOKS: dict[Way, tuple[str, str, str]] = {
    "own": (style.DENSE_COLOUR, "o", "own salt: nothing cached"),
    "shared": (style.COLOURS[1], "s", "shared, empty at the start"),
    "warm": (style.COLOURS[2], "D", "warm"),
}
Key = tuple[int, float, int, int]  # concurrency, gap, suffix, prefix


def write_report(folder: Path, rows: Sequence[Record]) -> Path:
    """Writes table.md and the figures of all rows of one server; returns the Markdown file."""
    facts = next(row for row in rows if row["row"] == "server")
    settings = by_setting([row for row in rows if row["row"] == "grid"])
    grain = sorted((row for row in rows if row["row"] == "grain"), key=lambda row: row["prefix"])
    tables = [grid(settings)] if settings else []
    tables += [grains(grain)] if grain else []
    note = f"{facts['model']}, vLLM {facts['vllm']}, device: {facts['device']}"
    with mpl.rc_context(style.SETTINGS):
        if settings:
            save(
                times(settings, note),
                folder / "figures",
                "ttft",
                "Time to first token by length of the shared prefix.",
            )
        if grain:
            save(
                stairs(grain, note),
                folder / "figures",
                "hits",
                "Tokens found in the prefix cache by length of the shared prefix.",
            )
    return page.write_page(folder, "vLLM: automatic prefix caching", rows, tables, GUIDE, server_row="server")


def by_setting(rows: Sequence[Record]) -> dict[Key, dict[Way, Record]]:
    """The rows of each setting by way, in order; settings without all ways are left out."""
    found: dict[Key, dict[Way, Record]] = {}
    for row in rows:
        key = (row["concurrency"], row["gap"], row["suffix"], row["prefix"])
        found.setdefault(key, {})[row["way"]] = row
    return {key: found[key] for key in sorted(found) if set(found[key]) == set(WAYS)}


def grid(settings: Mapping[Key, Mapping[Way, Record]]) -> Table:
    """Hits and times by setting."""
    header = ["at once", "gap (s)", "prefix", "suffix", "requests", "predicted", "hits warm", "shared found"]
    header += ["counters", "TTFT own", "TTFT shared", "TTFT warm", "own / warm", "same"]
    lines = []
    for (concurrency, gap, suffix, prefix), ways in settings.items():
        warm, own = ways["warm"], ways["own"]
        ratio = np.median(own["ttft_s"]) / np.median(warm["ttft_s"])
        lines.append(
            [
                str(concurrency),
                f"{gap:g}",
                str(prefix),
                str(suffix),
                str(warm["requests"]),
                str(warm["predicted"]),
                _hits(warm),
                _found(ways["shared"]),
                _counted(ways.values()),
                *(_milliseconds(ways[way]["ttft_s"]) for way in WAYS),
                f"{ratio:.1f}",
                _same(ways),
            ]
        )
    caption = "Tokens found in the cache per request, and time to the first token in ms."
    caption = " ".join([caption, *_shorter(row for ways in settings.values() for row in ways.values())])
    return Table("Hits and time to first token", caption, header, lines)


def _shorter(rows: Iterable[Record]) -> list[str]:
    """One line if a shared prefix is shorter than a block."""
    return short_prefix({"shared_prefix": row["prefix"], "block": row["block"]} for row in rows)


def grains(rows: Sequence[Record]) -> Table:
    """Hits by shared length, with one request each."""
    header = ["shared", "prompt", "predicted", "hits"]
    lines = [[str(r["prefix"]), str(r["prompt_tokens"]), str(r["predicted"]), _hits(r)] for r in rows]
    caption = f"Blocks of {rows[0]['block']} tokens: what of a shared prefix is found."
    caption = " ".join([caption, *_shorter(rows)])
    return Table("Grain of the hits", caption, header, lines)


def times(settings: Mapping[Key, Mapping[Way, Record]], note: str) -> style.Figure:
    """Time to first token against the prefix, one panel per concurrency and gap, one line per way and suffix."""
    panels = list(dict.fromkeys(key[:2] for key in settings))
    suffixes = sorted({key[2] for key in settings})
    figure, all_axes = style.panels(len(panels), shared=True)
    for axes, panel in zip(all_axes, panels, strict=True):
        for way in WAYS:
            for line, suffix in zip(style.LINES, suffixes, strict=False):
                keys = [key for key in settings if key[:2] == panel and key[2] == suffix]
                if not keys:
                    continue
                x, seconds = [key[3] for key in keys], [settings[key][way]["ttft_s"] for key in keys]
                low, middle, high = np.quantile(seconds, (0.2, 0.5, 0.8), axis=1)
                colour, marker, _ = LOOKS[way]
                axes.plot(x, middle, color=colour, marker=marker, linestyle=line, linewidth=1.2, markersize=5)
                axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        style.log_axis(axes, "x")
        style.log_axis(axes, "y")
        ticks = sorted({key[3] for key in settings})
        axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        axes.set_xlabel("shared prefix (tokens)")
        axes.set_ylabel("time to first token (s)")
        axes.set_title(f"{panel[0]} at once, one every {panel[1]:g} s" if panel[1] else f"{panel[0]} at once")
    handles = [Line2D([], [], color=c, marker=m, label=text) for c, m, text in LOOKS.values()]
    handles += [
        Line2D([], [], color=style.GREY, linestyle=line, label=f"suffix {suffix}")
        for line, suffix in zip(style.LINES, suffixes, strict=False)
    ]
    style.legend(figure, handles, f"{note}. Medians, bands from the 20th to the 80th percentile.")
    return figure


def stairs(rows: Sequence[Record], note: str) -> style.Figure:
    """Measured and predicted hits against the shared length."""
    figure, (axes,) = style.panels(1)
    block, suffix = rows[0]["block"], rows[0]["suffix"]
    x = np.arange(0, max(row["prefix"] for row in rows) + block // 2)
    axes.plot(x, [predicted_hits(n, suffix, block) for n in x], color=style.GREY, drawstyle="steps-post")
    axes.plot([r["prefix"] for r in rows], [r["cached"][0] for r in rows], "o", color=LOOKS["warm"][0])
    axes.set_xlabel("shared prefix (tokens)")
    axes.set_ylabel("found in the cache (tokens)")
    axes.set_xticks(np.arange(0, x[-1] + 1, block))
    axes.set_yticks(np.arange(0, x[-1] + 1, block))
    handles = [
        Line2D([], [], color=LOOKS["warm"][0], marker="o", linestyle="", label="measured"),
        Line2D([], [], color=style.GREY, label=f"predicted: whole blocks of {block}"),
    ]
    style.legend(figure, handles, f"{note}. One request after one that shares so many tokens.")
    return figure


def _hits(row: Record) -> str:
    found = row["cached"]
    if None in found:
        # the server reports only the sum, in its counters
        return "-" if row["hits"] is None else f"{row['hits'] / len(found):.0f} (mean)"
    return str(found[0]) if len(set(found)) == 1 else f"{min(found)}-{max(found)}"


def _found(row: Record) -> str:
    """Number of requests with any hit, out of all."""
    known = [cached for cached in row["cached"] if cached is not None]
    return f"{sum(cached > 0 for cached in known)}/{len(known)}" if known else "-"


def _counted(rows: Iterable[Record]) -> str:
    """Whether the server's counters agree with the answers, over all ways of a setting."""
    known = [row for row in rows if None not in row["cached"] and row["hits"] is not None]
    if not known or any(row["counters_reset"] for row in known):
        return "-"
    return "yes" if all(row["hits"] == sum(row["cached"]) for row in known) else "no"


def _same(ways: Mapping[Way, Record]) -> str:
    answers = [ways[way]["answers"] for way in WAYS]
    if any(answer is None for of_way in answers for answer in of_way):
        return "-"
    same = sum(all(answer == first for answer in rest) for first, *rest in zip(*answers, strict=True))
    return f"{same}/{len(answers[0])}"


def _milliseconds(seconds: Sequence[float]) -> str:
    low, middle, high = (f"{1000 * value:,.0f}" for value in np.quantile(seconds, (0.2, 0.5, 0.8)))
    return f"{middle} [{low}-{high}]"
