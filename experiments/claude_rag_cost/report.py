"""Tables and figures of the Agentic-RAG workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kvbench.claude import curves, plots, tables
from kvbench.claude.article import table as article_rows
from kvbench.claude.bound import lower_bound
from kvbench.claude.misses import diagnose
from kvbench.claude.placements import Placement, as_sent, named, none
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import Request
from kvbench.claude.simulate import simulate_range
from kvbench.config.files import write
from kvbench.config.text import counted
from kvbench.config.typed import as_yaml
from kvbench.experiments.claude_rag_cost.config import RagCostConfig
from kvbench.experiments.claude_rag_cost.run import PLACED, RagRow
from kvbench.report.format import csv_text, frame_table

WORK = {
    "article_graph": "the article's graph; turn 2 on grades and answers the first question again",
    "article_explicit": "the article's listing with markers: no grading, no rewriting, one request per turn",
    "agent": "LangChain's create_agent: no grading; _5m, _1h: with AnthropicPromptCachingMiddleware",
    "corrected": "the article's graph, asking the current question",
    "append_only": "the same steps in one growing conversation, so that every request repeats the history",
}


def frame(rows: Sequence[RagRow], cfg: RagCostConfig) -> pd.DataFrame:
    """Cost with its range, hit rate and tokens per run, compared with the same requests without markers."""
    prices = PriceBook.load(cfg.prices)
    lines: list[dict[str, Any]] = []
    for row in rows:
        ranges = simulate_range(row.trace, {"as sent": as_sent, "none": none}, prices, cfg.switches)
        line = tables.cost_row(row.name, ranges["as sent"], ranges["none"].base)
        line |= {"layout": row.family, "marked_requests": row.marked, "simulator_agrees": row.agrees}
        line["input_bound_usd"] = tables.usd(lower_bound(row.requests, prices, cfg.switches))
        lines.append(line)
    return pd.DataFrame(lines)


def write_report(cfg: RagCostConfig, rows: Sequence[RagRow]) -> Path:
    """Writes tables, figures and config.yaml into the run's folder; returns the Markdown file."""
    folder = Path(cfg.run_dir)
    prices = PriceBook.load(cfg.prices)
    costs = frame(rows, cfg)
    write(folder / "costs.csv", csv_text(costs))
    parts = [
        "# Agentic RAG: cost by layout and placement\n",
        f"{cfg.claude_model}, {counted(cfg.conversations, 'conversation')} of {counted(cfg.turns, 'turn')}, "
        f"{cfg.gap:g} s apart, "
        + (
            "real API.\n"
            if cfg.live
            else "loopback server with scripted answers; no request left this machine.\n"
        ),
        tables.GUIDE,
        frame_table(_display_table(costs)),
        "The layouts do not do the same work, so compare within a layout:\n",
        *(f"- {layout}: {work}" for layout, work in WORK.items()),
        "\nThe answers are from a script: nothing here says which layout answers better.\n",
        f'Tokens were counted by: {", ".join(sorted({row.requests[0].source for row in rows}))} ("scaled" is an '
        "estimate scaled to the usage that was reported). marked: requests with cache_control. agrees: the simulator "
        "gives the reported usage, to the token, on every request. input bound: no placement on the same requests "
        "can pay less for input.\n",
        "## Turn from which on a placement is cheaper than the same layout without markers\n",
        frame_table(break_evens(rows, cfg, prices)),
        "## The article's ten turns\n",
        frame_table(tables.article_table(article_rows(prices))),
    ]
    for row in rows:
        if row.layout in ("article_graph", "article_explicit") or row.placement == "automatic":
            diagnosis = diagnose(row.trace, as_sent, prices, cfg.switches)
            parts += [f"## Misses of {row.name}\n", tables.diagnosis_text(diagnosis)]
    plots.costs(costs, folder / "figures" / "costs.svg")
    plots.tokens(costs, folder / "figures" / "tokens.svg")
    turns = _turns(rows, cfg, "append_only")
    placements = _placements(cfg)
    plots.turns(curves.by_turn(turns, placements, prices, cfg.switches), folder / "figures" / "turns.svg")
    by_gap = curves.by_gap(turns, curves.GAPS, placements, prices, cfg.switches)
    plots.gaps(curves.GAPS, by_gap, folder / "figures" / "gaps.svg")
    write(folder / "config.yaml", as_yaml(cfg))
    return write(folder / "table.md", "\n".join(parts))


def break_evens(rows: Sequence[RagRow], cfg: RagCostConfig, prices: PriceBook) -> pd.DataFrame:
    """Break-even turn of every placement on every layout in `PLACED`."""
    lines = []
    for layout in PLACED:
        turns = _turns(rows, cfg, layout)
        found = curves.by_turn(turns, _placements(cfg), prices, cfg.switches)
        for name, curve in found.items():
            if name != "none":
                turn = curves.break_even(curve, found["none"])
                lines.append(
                    {"layout": layout, "placement": name, "turn": "never" if turn is None else str(turn)}
                )
    return pd.DataFrame(lines)


def _display_table(costs: pd.DataFrame) -> pd.DataFrame:
    table = tables.display_table(costs)
    table["marked"] = costs["marked_requests"]
    table["agrees"] = costs["simulator_agrees"].map({True: "yes", False: "NO"})
    table["input USD"] = costs["input_usd"].map("{:.4f}".format)
    table["input bound"] = costs["input_bound_usd"].map("{:.4f}".format)
    return table


def _placements(cfg: RagCostConfig) -> Mapping[str, Placement]:
    return {"none": none, **{name: named(name) for name in cfg.placements}}


def _turns(rows: Sequence[RagRow], cfg: RagCostConfig, layout: str) -> list[list[Request]]:
    """The first conversation of a layout, turn by turn."""
    requests = next(row.requests for row in rows if row.layout == layout)
    first = [request for request in requests if request.session == requests[0].session]
    return curves.in_turns(first, cfg.gap + cfg.service)
