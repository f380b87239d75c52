"""The experiment `claude_replay`: any trace under every placement, as tables and figures."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from kvbench.claude import curves, plots, tables
from kvbench.claude.article import table as article_rows
from kvbench.claude.assumptions import Assumptions
from kvbench.claude.bound import lower_bound
from kvbench.claude.misses import Diagnosis, diagnose
from kvbench.claude.placements import Placement, as_sent, named, none
from kvbench.claude.planner import plan
from kvbench.claude.prices import PriceBook
from kvbench.claude.simulate import Range, Trace, simulate, simulate_range
from kvbench.claude.traces.claude_code import Choices, ClaudeCodeTrace
from kvbench.claude.traces.open import FileTrace, Format, open_trace
from kvbench.claude.traces.recorded import RecordedTrace
from kvbench.claude.traces.synthetic import Synthetic, SyntheticTrace
from kvbench.config.errors import UserError
from kvbench.config.text import counted

# seconds: dense enough to show where a cliff is, and both sides of each lifetime
GAPS = tuple(
    sorted({*(float(round(10 * 540 ** (step / 60))) for step in range(61)), 299.0, 301.0, 3599.0, 3601.0})
)
PLANS = ("planner", "planner_cautious")


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What to replay and under which assumptions.

    Attributes:
        trace: folder or file; null replays generated conversations.
        format: what the file holds.
        placements: names of placements to compare.
        plan: also plan the cheapest placement (the trace is held in memory).
        width: states that the planner keeps.
        doctor: placement whose misses are explained, null for none.
        claude_model: model of traces that name none.
        date: day that undated traces start on.
        prices: price file or folder, null for the shipped one.
        strict: stop at the first defect of the trace.
        switches: assumptions on the undocumented points.
        choices: modelling choices of Claude Code sessions.
        synthetic: shape of generated conversations, also for the curves.
        run_dir: where the results go.
    """

    run_dir: str
    trace: str | None = None
    format: Format = "auto"
    placements: tuple[str, ...] = (
        "tools_system",
        "automatic",
        "automatic_1h",
        "explicit_four",
        "middleware_5m",
        "middleware_1h",
        "stable_1h_tail_5m",
    )
    plan: bool = True
    width: int = 12
    doctor: str | None = "automatic"
    claude_model: str = "claude-sonnet-4-6"
    date: str = "2026-11-24"
    prices: str | None = None
    strict: bool = False
    switches: Assumptions = field(default_factory=Assumptions)
    choices: Choices = field(default_factory=Choices)
    synthetic: Synthetic = field(default_factory=Synthetic)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"width: {self.width} is not allowed, give 1 or more")

    def day(self) -> datetime.date:
        """The date.

        Raises:
            UserError: not a date.
        """
        try:
            return datetime.date.fromisoformat(self.date)
        except ValueError:
            raise UserError(f"date: {self.date!r} is not a date, give it as 2026-11-24") from None

    def generated(self, spec: Synthetic, prices: PriceBook) -> SyntheticTrace:
        """Conversations of a shape, with this model, on this day.

        Raises:
            UserError: see `SyntheticTrace`.
        """
        return SyntheticTrace(spec, prices, self.claude_model, self.day())


@dataclass
class ReplayResult:
    """Results of a replay; see `write` for what becomes of them."""

    costs: pd.DataFrame
    point_deltas: pd.DataFrame
    choice_deltas: pd.DataFrame
    diagnosis: Diagnosis | None
    bound: int | None
    problems: list[str]
    notes: list[str]


def replay(cfg: ReplayConfig) -> ReplayResult:
    """Replays a trace under every placement.

    Raises:
        UserError: anything wrong in the configuration; defects of the trace are collected unless strict.
    """
    placements: dict[str, Placement] = {"none": none, **{name: named(name) for name in cfg.placements}}
    prices = PriceBook.load(cfg.prices)
    trace = _trace(cfg, prices)
    if isinstance(trace, RecordedTrace):
        placements["as_sent"] = as_sent
    notes: list[str] = []
    bound = None
    if cfg.plan:
        # the cautious plan does not count on a 1h marker that prolongs what was written for 5 minutes (U2)
        cautious = replace(cfg.switches, ttl_lookup="matched")
        fixed = dict(placements)
        for name, assumptions in zip(PLANS, (cfg.switches, cautious), strict=True):
            found = plan(trace.requests(assumptions), prices, assumptions, width=cfg.width, fixed=fixed)
            placements[name] = found.placement
            if not found.exact:
                notes.append(
                    f"{name} kept the {cfg.width} most promising states; the bound says what is left"
                )
        bound = lower_bound(trace.requests(cfg.switches), prices, cfg.switches)
    ranges = simulate_range(trace, placements, prices, cfg.switches)
    plain = ranges["none"].base
    if not plain.requests:
        raise UserError(f"trace={cfg.trace}: no request could be read; {'; '.join(_problems(trace)[:1])}")
    costs = pd.DataFrame([tables.cost_row(name, result, plain) for name, result in ranges.items()])
    choices = _choice_deltas(cfg, trace, placements, ranges, prices)
    diagnosis = diagnose(trace, named(cfg.doctor), prices, cfg.switches) if cfg.doctor else None
    return ReplayResult(
        costs, tables.point_deltas(ranges), choices, diagnosis, bound, _problems(trace), notes + _notes(trace)
    )


def write(cfg: ReplayConfig, results: ReplayResult) -> Path:
    """Writes tables and figures into the run's folder; returns the Markdown file."""
    folder = Path(cfg.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    prices = PriceBook.load(cfg.prices)
    parts = [
        f"# Prompt-caching cost of {Path(cfg.trace).name if cfg.trace else 'generated conversations'}\n",
        *([] if cfg.trace else [f"{_generated(cfg.synthetic)}\n"]),
        tables.GUIDE,
        tables.markdown(tables.display_table(results.costs)),
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
        parts += ["## What each modelling choice moves, in USD\n", tables.markdown(results.choice_deltas)]
        frames["choices"] = results.choice_deltas
    if results.diagnosis is not None:
        frames["misses"] = tables.findings_table(results.diagnosis)
        parts += [f"## Misses of {cfg.doctor}\n", tables.markdown(tables.diagnosis_table(results.diagnosis))]
        for name, saved in results.diagnosis.net.items():
            parts.append(
                f"With {name} the cost of the whole trace changes by {tables.usd(-saved):+.4f} USD.\n"
            )
    parts += ["## The article's ten turns\n", tables.markdown(tables.article_table(article_rows(prices)))]
    parts += (
        ["## Defects of the trace\n", *(f"- {line}\n" for line in results.problems)]
        if results.problems
        else []
    )
    for name, frame in frames.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
    _figures(cfg, results, prices, folder / "figures")
    path = folder / "table.md"
    path.write_text("\n".join(parts))
    return path


def _generated(spec: Synthetic) -> str:
    return (
        f"{counted(spec.sessions, 'conversation')} of {counted(spec.turns, 'turn')}, {spec.gap:g} s apart: "
        f"{spec.tools} tokens of tools, {spec.system} of system prompt; {spec.context} retrieved, {spec.question} "
        f"asked and {spec.answer} answered per turn. Generated, not traffic."
    )


def _trace(cfg: ReplayConfig, prices: PriceBook) -> Trace:
    if cfg.trace is None:
        return cfg.generated(cfg.synthetic, prices)
    return open_trace(
        cfg.trace,
        prices,
        format=cfg.format,
        choices=cfg.choices,
        model=cfg.claude_model,
        date=cfg.day(),
        strict=cfg.strict,
    )


def _choice_deltas(
    cfg: ReplayConfig,
    trace: Trace,
    placements: Mapping[str, Placement],
    ranges: Mapping[str, Range],
    prices: PriceBook,
) -> pd.DataFrame:
    """Replays a Claude Code trace with every modelling choice turned; plans hold for one choice only."""
    if not isinstance(trace, ClaudeCodeTrace):
        return pd.DataFrame()
    fixed = {name: placement for name, placement in placements.items() if name not in PLANS}
    turned = {
        name: simulate(replace(trace, choices=choices).requests(cfg.switches), fixed, prices, cfg.switches)
        for name, choices in trace.choices.flips()
    }
    return tables.choice_deltas({name: ranges[name].base for name in fixed}, turned)


def _problems(trace: Trace) -> list[str]:
    return trace.problems.lines if isinstance(trace, FileTrace) else []


def _notes(trace: Trace) -> list[str]:
    if isinstance(trace, RecordedTrace) and trace.rejected:
        name, message = trace.rejected[0]
        return [
            f"Rejected by the API: {counted(len(trace.rejected), 'request')}, the first is {name}: {message}"
        ]
    if not isinstance(trace, ClaudeCodeTrace):
        return []
    return [
        "The sessions have no content-block boundaries: `blocks` says what another cut moves.",
        "Most requests have no time to first byte: `ttft` says what taking the whole response time moves.",
        "Hash ids are local to a file, so what sessions share (tools, system) cannot be seen; "
        "each session is taken as a cache of its own.",
        "Up to 63 tokens at the end of each prompt have no hash id and are taken as uncached.",
        "Which lifetime is cheaper depends on the sessions; no result here says that one is in general.",
    ]


def _figures(cfg: ReplayConfig, results: ReplayResult, prices: PriceBook, folder: Path) -> None:
    plots.costs(results.costs, folder / "costs.svg")
    plots.tokens(results.costs, folder / "tokens.svg")
    single = cfg.generated(replace(cfg.synthetic, sessions=1, fan_out=1), prices)
    turns = [[request] for request in single.requests(cfg.switches)]
    fixed = {"none": none, **{name: named(name) for name in cfg.placements}}
    plots.turns(curves.by_turn(turns, fixed, prices, cfg.switches), folder / "generated_turns.svg")
    by_gap = curves.by_gap(turns, GAPS, fixed, prices, cfg.switches)
    plots.gaps(GAPS, by_gap, folder / "generated_gaps.svg")
