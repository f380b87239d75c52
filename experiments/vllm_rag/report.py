"""Table and figures of `vllm_rag`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes

from kvbench.config.files import write
from kvbench.experiments.vllm_rag.config import LAYOUTS
from kvbench.experiments.vllm_rag.steps import GraphStep, by_node
from kvbench.report import style
from kvbench.report.format import Table, csv_text, number
from kvbench.report.plots import save
from kvbench.runs.store import Record
from kvbench.vllm import page
from kvbench.vllm.blocks import short_prefix
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
HEADING = "Prompt tokens computed and cached by layout of the prompt, and hit rate by step."


def write_report(folder: Path, rows: Sequence[Record], order: Sequence[str]) -> Path:
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
    write(folder / "steps.csv", csv_text(pd.DataFrame(steps)))
    parts: list[Table | str] = []
    for label in order:
        of_server = [row for row in runs if row["setup"] == label]
        of_server.sort(key=lambda row: LAYOUTS.index(row["layout"]))
        if of_server:
            parts += [table(of_server, label), *_failures(of_server)]
            save(_figure(of_server, label), folder / "figures", f"rag.{label}", HEADING)
    return page.write_page(folder, "Agentic RAG on a self-hosted model", rows, parts, GUIDE)


def table(rows: Sequence[Record], label: str) -> Table:
    """Per layout and node: tokens, hit rate and seconds; rows of one server."""
    header = ["layout", "step", "requests", "prompt tokens", "found", "computed", "hit rate", "s per request"]
    header += ["server: found", "server: asked"]
    body = []
    for row in rows:
        for part in by_node([GraphStep(**step) for step in row["steps"]]):
            line = [part["layout"], part["node"], str(part["requests"]), f"{part['prompt_tokens']:,}"]
            line += [number(part[name], ",d") for name in ("cached_tokens", "computed_tokens")]
            line.append(number(part["hit_rate"], ".1%"))
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
    caption = " ".join([caption, *_short(rows)])
    return Table(f"Prefix cache by step: {label}, {first['device']}", caption, header, body)


def _short(rows: Sequence[Record]) -> list[str]:
    """One line per layout whose requests share less than a block."""
    return [f"{row['layout']}: {line}" for row in rows for line in short_prefix([row])]


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
        nodes_by_layout = {
            row["layout"]: by_node([GraphStep(**step) for step in row["steps"]]) for row in rows
        }
        _draw_tokens(tokens, nodes_by_layout)
        _draw_hit_rates(rates, nodes_by_layout)
        handles, _ = rates.get_legend_handles_labels()
        first = rows[0]
        text = f"{first['model']}, vLLM {first['vllm']} on {first['device']}, {label}."
        style.legend(figure, handles, text)
        return figure


def _draw_tokens(axes: Axes, nodes_by_layout: Mapping[str, Sequence[Record]]) -> None:
    for y, (colour, nodes) in enumerate(zip(style.COLOURS, nodes_by_layout.values(), strict=False)):
        whole = nodes[-1]
        cached = whole["cached_tokens"] or 0
        computed = whole["prompt_tokens"] - cached
        axes.barh(y, computed, color=colour)
        axes.barh(y, cached, left=computed, color=colour, alpha=0.3)
        axes.text(computed / 2, y, f"{computed:,}", ha="center", va="center", color="white")
        axes.text(computed + cached / 2, y, f"{cached:,}", ha="center", va="center")
    axes.set_yticks(range(len(nodes_by_layout)), list(nodes_by_layout))
    axes.invert_yaxis()
    axes.set_title("prompt tokens: computed, cached (pale)")
    axes.grid(visible=False, axis="y")


def _draw_hit_rates(axes: Axes, nodes_by_layout: Mapping[str, Sequence[Record]]) -> None:
    names = list(dict.fromkeys(node["node"] for nodes in nodes_by_layout.values() for node in nodes))
    width = 0.8 / len(nodes_by_layout)
    for index, (layout, nodes) in enumerate(nodes_by_layout.items()):
        rate = {node["node"]: node["hit_rate"] or 0.0 for node in nodes}
        x = [group + index * width for group, name in enumerate(names) if name in rate]
        heights = [rate[name] for name in names if name in rate]
        axes.bar(x, heights, width=width, color=style.COLOURS[index], label=layout)
    axes.set_xticks([group + 0.4 - width / 2 for group in range(len(names))], names)
    axes.set_ylim(0, 1)
    axes.grid(visible=False, axis="x")
    axes.set_title("hit rate by step")
