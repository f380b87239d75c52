"""Tables and figures of a replay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvbench.claude import curves, plots, tables
from kvbench.claude.article import table as article_rows
from kvbench.claude.placements import named, none
from kvbench.claude.prices import PriceBook
from kvbench.claude.traces.synthetic import Synthetic
from kvbench.config.files import write
from kvbench.config.text import counted
from kvbench.config.typed import as_yaml
from kvbench.experiments.claude_replay.config import ReplayConfig
from kvbench.experiments.claude_replay.run import ReplayResult
from kvbench.report.format import csv_text, frame_table


def write_report(cfg: ReplayConfig, results: ReplayResult) -> Path:
    """Writes tables, figures and config.yaml into the run's folder; returns the Markdown file."""
    folder = Path(cfg.run_dir)
    prices = PriceBook.load(cfg.prices)
    parts = [
        f"# Prompt-caching cost of {Path(cfg.trace).name if cfg.trace else 'generated conversations'}\n",
        *([] if cfg.trace else [f"{_generated(cfg.synthetic)}\n"]),
        tables.GUIDE,
        frame_table(tables.display_table(results.costs)),
    ]
    if results.bound is not None:
        parts.append(f"No placement can cost less than ${tables.usd(results.bound):.4f} of input.\n")
    frames = {"costs": results.costs, "open_points": results.point_deltas}
    parts += [f"- {note}\n" for note in results.notes]
    parts += [
        "## What each undocumented point, turned alone, moves, in USD\n",
        tables.point_deltas_text(results.point_deltas),
    ]
    if not results.choice_deltas.empty:
        parts += ["## What each modelling choice moves, in USD\n", frame_table(results.choice_deltas)]
        frames["choices"] = results.choice_deltas
    if results.bill is not None:
        frames["differences"] = tables.differences_table(results.bill)
        parts += ["## The bill and the simulation\n", tables.bill_text(results.bill)]
    if results.diagnosis is not None:
        frames["misses"] = tables.findings_table(results.diagnosis)
        parts += [f"## Misses of {results.doctor}\n", tables.diagnosis_text(results.diagnosis)]
        for name, saved in results.diagnosis.net.items():
            parts.append(
                f"With {name} the cost of the whole trace changes by {tables.usd(-saved):+.4f} USD.\n"
            )
    parts += ["## The article's ten turns\n", frame_table(tables.article_table(article_rows(prices)))]
    parts += (
        ["## Defects of the trace\n", *(f"- {line}\n" for line in results.problems)]
        if results.problems
        else []
    )
    for name, frame in frames.items():
        write(folder / f"{name}.csv", csv_text(frame))
    _figures(cfg, results, prices, folder / "figures")
    write(folder / "config.yaml", as_yaml(cfg))
    return write(folder / "table.md", "\n".join(parts))


def _generated(spec: Synthetic) -> str:
    return (
        f"{counted(spec.sessions, 'conversation')} of {counted(spec.turns, 'turn')}, {spec.gap:g} s apart: "
        f"{spec.tools} tokens of tools, {spec.system} of system prompt; {spec.context} retrieved, {spec.question} "
        f"asked and {spec.answer} answered per turn. Generated, not traffic."
    )


def _figures(cfg: ReplayConfig, results: ReplayResult, prices: PriceBook, folder: Path) -> None:
    plots.costs(results.costs, folder / "costs.svg")
    plots.tokens(results.costs, folder / "tokens.svg")
    single = cfg.generated(replace(cfg.synthetic, sessions=1, fan_out=1), prices)
    turns = [[request] for request in single.requests(cfg.switches)]
    fixed = {"none": none, **{name: named(name) for name in cfg.placements}}
    plots.turns(curves.by_turn(turns, fixed, prices, cfg.switches), folder / "generated_turns.svg")
    by_gap = curves.by_gap(turns, curves.GAPS, fixed, prices, cfg.switches)
    plots.gaps(curves.GAPS, by_gap, folder / "generated_gaps.svg")
