"""The experiment `claude_rag_cost`: the Agentic-RAG workload under every layout and placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kvbench.claude import curves, plots, tables
from kvbench.claude.article import table as article_rows
from kvbench.claude.assumptions import Assumptions
from kvbench.claude.bound import lower_bound
from kvbench.claude.counts import ApiCounter
from kvbench.claude.misses import diagnose
from kvbench.claude.placements import Placement, as_sent, named, none
from kvbench.claude.planner import plan
from kvbench.claude.prices import PriceBook
from kvbench.claude.rag.sizes import Sizes
from kvbench.claude.request import Request, Usage
from kvbench.claude.simulate import Simulator, Trace, simulate_range
from kvbench.claude.tokens import best_counter
from kvbench.claude.traces.recorded import RecordedTrace
from kvbench.config.errors import UserError
from kvbench.config.text import counted
from kvbench.experiments.claude_replay.run import GAPS

if TYPE_CHECKING:
    from kvbench.claude.rag.workload import Runner

# layouts that are run as they are, and layouts whose requests are marked by each placement
AS_SENT = ("article_graph", "article_explicit", "agent", "agent_5m", "agent_1h")
PLACED = ("corrected", "append_only")
WORK = {
    "article_graph": "the article's graph; turn 2 on grades and answers the first question again",
    "article_explicit": "the article's listing with markers: no grading, no rewriting, one request per turn",
    "agent": "LangChain's create_agent: no grading; _5m, _1h: with AnthropicPromptCachingMiddleware",
    "corrected": "the article's graph, asking the current question",
    "append_only": "the same steps in one growing conversation, so that every request repeats the history",
}
EXTRA = "the Agentic-RAG workload needs the extra: pip install 'kvbench[claude]'"


@dataclass(frozen=True, kw_only=True)
class RagConfig:
    """What to run and under which assumptions.

    Attributes:
        run_dir: where the results go.
        claude_model: model that is asked and priced.
        turns: questions per conversation.
        conversations: conversations, one after another.
        gap: seconds between turns.
        service: seconds per request (virtual time).
        sizes: sizes of a prompt's parts.
        placements: placements to put on the corrected and the append-only layout.
        live: talk to the real API with the key in ANTHROPIC_API_KEY; costs money.
        counts: file of token counts as `take_counts` writes it, null to count without.
        take_counts: count every block with the API's count_tokens, which needs the key and costs nothing, and write
            the run's counts.json.
        prices: price file or folder, null for the shipped one.
        switches: assumptions on the undocumented points.
        seed: of the questions.
    """

    run_dir: str
    claude_model: str = "claude-sonnet-4-6"
    turns: int = 10
    conversations: int = 1
    gap: float = 60.0
    service: float = 2.0
    # those of the article's table
    sizes: Sizes = field(default_factory=lambda: Sizes(system=2_000, tool=1_000, passage=8_000))
    placements: tuple[str, ...] = ("none", "tools_system", "automatic", "explicit_four", "stable_1h_tail_5m")
    live: bool = False
    counts: str | None = None
    take_counts: bool = False
    prices: str | None = None
    switches: Assumptions = field(default_factory=Assumptions)
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            UserError: a number that makes no sense.
        """
        for name in ("turns", "conversations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not allowed, give 1 or more")
        for name in ("gap", "service"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: {getattr(self, name)} is not allowed, give 0 or more")


@dataclass
class RagRow:
    """One run.

    Attributes:
        layout: which graph.
        placement: which markers were put on it.
        requests: its recorded requests.
        marked: requests that carried cache_control (loopback only).
        agrees: the simulator gives the reported usage, to the token, on every request.
        trace: its trace file.
    """

    layout: str
    placement: str
    requests: list[Request]
    marked: int
    agrees: bool
    trace: Trace

    @property
    def name(self) -> str:
        """Layout and placement."""
        return self.layout if self.placement == "as sent" else f"{self.layout} + {self.placement}"

    @property
    def family(self) -> str:
        """The layout without the middleware that it ran with."""
        return self.layout.removesuffix("_5m").removesuffix("_1h")


def runner_of(cfg: RagConfig, prices: PriceBook) -> Runner:
    """What runs the workload and writes its traces into the run's folder.

    Raises:
        UserError: the extra is not installed, the model is unknown, or a live run has no key.
    """
    try:
        from kvbench.claude.rag.workload import Runner, Workload
    except ModuleNotFoundError as error:
        raise UserError(f"{EXTRA} ({error.name} is missing)") from None
    workload = Workload(
        model=cfg.claude_model,
        turns=cfg.turns,
        conversations=cfg.conversations,
        gap=cfg.gap,
        service=cfg.service,
        sizes=cfg.sizes,
        seed=cfg.seed,
    )
    folder = Path(cfg.run_dir) / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    counter = ApiCounter.from_environment() if cfg.take_counts else best_counter(cfg.counts)
    return Runner(workload, prices, folder, cfg.switches, live=cfg.live, counter=counter)


def run(cfg: RagConfig) -> list[RagRow]:
    """Runs every layout and placement.

    Raises:
        UserError: see `runner_of`, or a name that is unknown.
    """
    prices = PriceBook.load(cfg.prices)
    placements = {name: named(name) for name in cfg.placements}
    runner = runner_of(cfg, prices)

    def one(layout: str, name: str, placement: Placement | None, ids: Sequence[str] = ()) -> RagRow:
        label = f"{layout}-{name}".replace(" ", "_")
        ran = runner.run(layout, placement, label=label, plan_ids=(lambda n: ids[n - 1]) if ids else None)
        trace = RecordedTrace(runner.folder / f"{label}.jsonl", prices)
        agrees = agreement(trace, prices, cfg.switches)
        return RagRow(layout, name, ran.requests, ran.marked(), agrees, trace)

    rows = [one(layout, "as sent", None) for layout in AS_SENT]
    for layout in ("agent", *PLACED):
        chosen = placements if layout in PLACED else {}
        done = {name: one(layout, name, placement) for name, placement in chosen.items()}
        rows += done.values()
        base = done.get("none") or next((row for row in rows if row.layout == layout), None)
        if base is None:
            base = one(layout, "none", none)
        found = plan(base.requests, prices, cfg.switches)
        rows.append(one(layout, "planner", found.placement, [request.id for request in base.requests]))
    keep_counts(cfg, runner)
    return rows


def keep_counts(cfg: RagConfig, runner: Runner) -> None:
    """Writes counts.json into the run's folder if the counts were taken in this run."""
    if isinstance(runner.counter, ApiCounter):
        runner.counter.save(Path(cfg.run_dir) / "counts.json")


def agreement(trace: Trace, prices: PriceBook, assumptions: Assumptions) -> bool:
    """Whether the simulator gives the usage that was reported, to the token, on every request."""
    simulator = Simulator(as_sent, prices, assumptions)
    for request in trace.requests(assumptions):
        usage = simulator.feed(request).usage
        if request.usage is None or _tokens(usage) != _tokens(request.usage):
            return False
    return True


def _tokens(usage: Usage) -> tuple[int, int, int, int]:
    return usage.read, usage.write_5m, usage.write_1h, usage.uncached


def frame(rows: Sequence[RagRow], cfg: RagConfig) -> pd.DataFrame:
    """The table: cost with its range, hit rate and tokens; each compared with its own requests unmarked."""
    prices = PriceBook.load(cfg.prices)
    lines: list[dict[str, Any]] = []
    for row in rows:
        ranges = simulate_range(row.trace, {"as sent": as_sent, "none": none}, prices, cfg.switches)
        line = tables.cost_row(row.name, ranges["as sent"], ranges["none"].base)
        line |= {"layout": row.family, "marked_requests": row.marked, "simulator_agrees": row.agrees}
        line["input_bound_usd"] = tables.usd(lower_bound(row.requests, prices, cfg.switches))
        lines.append(line)
    return pd.DataFrame(lines)


def write(cfg: RagConfig, rows: Sequence[RagRow]) -> Path:
    """Writes tables and figures into the run's folder; returns the Markdown file."""
    folder = Path(cfg.run_dir)
    prices = PriceBook.load(cfg.prices)
    costs = frame(rows, cfg)
    costs.to_csv(folder / "costs.csv", index=False)
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
        tables.markdown(_shown_columns(costs)),
        "The layouts do not do the same work, so compare within a layout:\n",
        *(f"- {layout}: {work}" for layout, work in WORK.items()),
        "\nThe answers are from a script: nothing here says which layout answers better.\n",
        f'Tokens were counted by: {", ".join(sorted({row.requests[0].source for row in rows}))} ("scaled" is an '
        "estimate scaled to the usage that was reported). marked: requests with cache_control. agrees: the simulator "
        "gives the reported usage, to the token, on every request. input bound: no placement on the same requests "
        "can pay less for input.\n",
        "## Turn from which on a placement is cheaper than the same layout without markers\n",
        tables.markdown(break_evens(rows, cfg, prices)),
        "## The article's ten turns\n",
        tables.markdown(tables.article_table(article_rows(prices))),
    ]
    for row in rows:
        if row.layout in ("article_graph", "article_explicit") or row.placement == "automatic":
            diagnosis = diagnose(row.trace, as_sent, prices, cfg.switches)
            parts += [f"## Misses of {row.name}\n", tables.markdown(tables.diagnosis_table(diagnosis))]
    plots.costs(costs, folder / "figures" / "costs.svg")
    plots.tokens(costs, folder / "figures" / "tokens.svg")
    turns = _turns(rows, cfg, "append_only")
    shown = _shown(cfg)
    plots.turns(curves.by_turn(turns, shown, prices, cfg.switches), folder / "figures" / "turns.svg")
    plots.gaps(GAPS, curves.by_gap(turns, GAPS, shown, prices, cfg.switches), folder / "figures" / "gaps.svg")
    path = folder / "table.md"
    path.write_text("\n".join(parts))
    return path


def break_evens(rows: Sequence[RagRow], cfg: RagConfig, prices: PriceBook) -> pd.DataFrame:
    """Break-even turn of every placement on every layout that is compared under placements."""
    lines = []
    for layout in PLACED:
        turns = _turns(rows, cfg, layout)
        found = curves.by_turn(turns, _shown(cfg), prices, cfg.switches)
        for name, curve in found.items():
            if name != "none":
                turn = curves.break_even(curve, found["none"])
                lines.append(
                    {"layout": layout, "placement": name, "turn": "never" if turn is None else str(turn)}
                )
    return pd.DataFrame(lines)


def _shown_columns(costs: pd.DataFrame) -> pd.DataFrame:
    table = tables.display_table(costs)
    table["marked"] = costs["marked_requests"]
    table["agrees"] = costs["simulator_agrees"].map({True: "yes", False: "NO"})
    table["input USD"] = costs["input_usd"].map("{:.4f}".format)
    table["input bound"] = costs["input_bound_usd"].map("{:.4f}".format)
    return table


def _shown(cfg: RagConfig) -> Mapping[str, Placement]:
    return {"none": none, **{name: named(name) for name in cfg.placements}}


def _turns(rows: Sequence[RagRow], cfg: RagConfig, layout: str) -> list[list[Request]]:
    """The first conversation of a layout, turn by turn."""
    requests = next(row.requests for row in rows if row.layout == layout)
    first = [request for request in requests if request.session == requests[0].session]
    return curves.in_turns(first, cfg.gap + cfg.service)
