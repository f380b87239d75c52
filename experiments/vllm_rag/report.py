"""Table and figures of `vllm_rag`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from kvbench.experiments.vllm_rag.config import LAYOUTS
from kvbench.experiments.vllm_rag.steps import GraphStep, by_node
from kvbench.report import style
from kvbench.report.format import Table
from kvbench.report.plots import save
from kvbench.runs.store import Record
from kvbench.vllm import page
from kvbench.vllm.campaign import of_kind

GUIDE = (
    "article_graph: the article's layout, which searches, grades, rewrites and answers with prompts of their own and "
    "grades the conversation's first question on every turn. corrected: the same on the current question. append_only: "
    "every step continues one message list.",
    "hit rate: prompt tokens found in vLLM's prefix cache, of all. computed: those that were not found, which is what "
    "the server has to prefill. Only whole blocks are found. Every layout starts without any cached prefix.",
    "The layouts do not do the same work: append_only repeats its history in every step, so look at the computed "
    "tokens, not at the hit rate alone. grades held to yes: all take the same path (search, grade, answer); left to "
    "the model, paths differ, and rows with other numbers of requests cannot be compared.",
    "The tool call and the grade are forced by guided decoding, so that any model goes through the graph. A chat "
    "template that knows no tools leaves their description out of the prompt.",
    "Sizes in characters and tokens of the corpus are those of the configuration; answers say nothing about quality.",
)


def write(folder: Path, rows: Sequence[Record], order: Sequence[str]) -> Path:
    """Writes table.md, steps.csv and the figures, one per server.

    Args:
        folder: the run's.
        rows: of `run.run`.
        order: labels of the servers.

    Returns:
        The Markdown file.
    """
    runs = of_kind(rows, "rag")
    steps = [{"setup": row["setup"], **step} for row in runs for step in row["steps"]]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(steps).to_csv(folder / "steps.csv", index=False)
    parts: list[Table | str] = []
    for label in order:
        of_server = [row for row in runs if row["setup"] == label]
        of_server.sort(key=lambda row: LAYOUTS.index(row["layout"]))
        if of_server:
            parts += [table(of_server, label), *_failures(of_server)]
            save(_figure(of_server, label), folder / "figures", f"rag.{label}")
    return page.write(folder, "Agentic RAG on a self-hosted model", rows, parts, GUIDE)


def table(rows: Sequence[Record], label: str) -> Table:
    """Per layout and node: tokens, hit rate and seconds; rows of one server."""
    header = ["layout", "step", "requests", "prompt tokens", "found", "computed", "hit rate", "s per request"]
    header += ["server: found", "server: asked"]
    body = []
    for row in rows:
        for part in by_node([GraphStep(**step) for step in row["steps"]]):
            line = [part["layout"], part["node"], str(part["requests"]), f"{part['prompt_tokens']:,}"]
            for name in ("cached_tokens", "computed_tokens"):
                line.append("-" if part[name] is None else f"{part[name]:,}")
            line.append("-" if part["hit_rate"] is None else f"{part['hit_rate']:.1%}")
            line.append(f"{part['seconds'] / part['requests']:.2f}")
            whole = part["node"] == "all"
            for name in ("server_prefix_hits", "server_prefix_queries"):
                line.append(f"{row[name]:,.0f}" if whole and row[name] is not None else "")
            body.append(line)
    first = rows[0]
    grades = "held to yes" if first["grades"] == "yes" else "left to the model"
    caption = (
        f"{first['model']}, vLLM {first['vllm']} on {first['device']}, {label}. "
        f"{len(first['turns'])} questions per layout, grades {grades}. "
        "server: the whole layout by vLLM's own counters."
    )
    return Table(f"Prefix cache by step: {label}, {first['device']}", caption, header, body)


def _failures(rows: Sequence[Record]) -> list[str]:
    failed = [turn for row in rows for turn in row["turns"] if turn["error"]]
    lines = [
        f"- {turn['layout']}, conversation {turn['conversation']}, turn {turn['turn']}: {turn['error']}"
        for turn in failed
    ]
    return ["Turns that failed, each the end of its conversation:", "", *lines, ""] if lines else []


def _figure(rows: Sequence[Record], label: str) -> style.Figure:
    with mpl.rc_context(style.SETTINGS):
        figure, (tokens, rates) = style.panels(2, height=3.2)
        layouts = [row["layout"] for row in rows]
        parts = [by_node([GraphStep(**step) for step in row["steps"]]) for row in rows]
        for place, found in enumerate(parts):
            whole = found[-1]
            cached = whole["cached_tokens"] or 0
            computed = whole["prompt_tokens"] - cached
            tokens.barh(place, computed, color=style.COLOURS[place])
            tokens.barh(place, cached, left=computed, color=style.COLOURS[place], alpha=0.3)
            tokens.text(computed / 2, place, f"{computed:,}", ha="center", va="center", color="white")
            tokens.text(computed + cached / 2, place, f"{cached:,}", ha="center", va="center")
        tokens.set_yticks(range(len(layouts)), layouts)
        tokens.invert_yaxis()
        tokens.set_title("prompt tokens: computed, cached (pale)")
        tokens.grid(visible=False, axis="y")
        nodes = list(dict.fromkeys(part["node"] for found in parts for part in found))
        width = 0.8 / len(layouts)
        for place, (layout, found) in enumerate(zip(layouts, parts, strict=True)):
            rate = {part["node"]: part["hit_rate"] or 0.0 for part in found}
            where = [number + place * width for number, node in enumerate(nodes) if node in rate]
            heights = [rate[node] for node in nodes if node in rate]
            rates.bar(where, heights, width=width, color=style.COLOURS[place], label=layout)
        rates.set_xticks([number + 0.4 - width / 2 for number in range(len(nodes))], nodes)
        rates.set_ylim(0, 1)
        rates.grid(visible=False, axis="x")
        rates.set_title("hit rate by step")
        handles, _ = rates.get_legend_handles_labels()
        style.legend(
            figure, handles, f"{rows[0]['model']}, vLLM {rows[0]['vllm']} on {rows[0]['device']}, {label}."
        )
        return figure
