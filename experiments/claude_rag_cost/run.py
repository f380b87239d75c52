"""The Agentic-RAG workload under every layout and placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import Placement, as_sent, named, none
from kvbench.claude.planner import plan
from kvbench.claude.prices import PriceBook
from kvbench.claude.rag.config import build_runner, save_counts
from kvbench.claude.request import Request, Usage
from kvbench.claude.simulate import Simulator, Trace
from kvbench.claude.traces.recorded import RecordedTrace
from kvbench.experiments.claude_rag_cost.config import RagCostConfig
from kvbench.runs.progress import ProgressDisplay, ProgressFactory

# layouts to run unchanged, and layouts to run with each placement

if TYPE_CHECKING:
    # needs the extra
    from kvbench.claude.rag.workload import Runner

AS_SENT = ("article_graph", "article_explicit", "agent", "agent_5m", "agent_1h")
PLACED = ("corrected", "append_only")


@dataclass
class RagRow:
    """One recorded run.

    Attributes:
        layout: name of the layout.
        placement: name of the placement, `as sent` for the layout's own markers.
        requests: recorded requests.
        marked: number of requests with cache_control (loopback only).
        agrees: the simulator reproduces the reported usage of every request exactly.
        trace: recorded trace.
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
        """The layout without the suffix of its middleware."""
        return self.layout.removesuffix("_5m").removesuffix("_1h")


def run(cfg: RagCostConfig, progress: ProgressFactory) -> list[RagRow]:
    """Runs every layout and placement.

    Args:
        cfg: the configuration.
        progress: makes the progress display; a run of the workload counts as a prompt with one cell.

    Raises:
        UserError: an unknown name; see also `build_runner`.
    """
    prices = PriceBook.load(cfg.prices)
    placements = {name: named(name) for name in cfg.placements}
    runner = build_runner(cfg, prices)
    with progress(count := _runs(cfg), count) as display:
        rows = _rows(cfg, prices, placements, runner, display)
    save_counts(cfg, runner)
    return rows


def _runs(cfg: RagCostConfig) -> int:
    """How often the workload runs: as sent, with every placement, and with the planner's."""
    # what the planner starts from has a run of its own where there is no placement
    each = 1 + (len(cfg.placements) or 1)
    return len(AS_SENT) + 1 + len(PLACED) * each


def _rows(
    cfg: RagCostConfig, prices: PriceBook, placements: Mapping[str, Placement], runner: Runner,
    display: ProgressDisplay,
) -> list[RagRow]:  # fmt: skip
    def one(layout: str, name: str, placement: Placement | None, ids: Sequence[str] = ()) -> RagRow:
        display.start_prompt(f"{layout}, {name}")
        label = f"{layout}-{name}".replace(" ", "_")
        ran = runner.run(layout, placement, label=label, plan_ids=(lambda n: ids[n - 1]) if ids else None)
        trace = RecordedTrace(runner.folder / f"{label}.jsonl", prices)
        agrees = agreement(trace, prices, cfg.switches)
        display.cells_done(1)
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
    return rows


def agreement(trace: Trace, prices: PriceBook, assumptions: Assumptions) -> bool:
    """Whether the simulator reproduces the reported usage of every request exactly."""
    simulator = Simulator(as_sent, prices, assumptions)
    for request in trace.requests(assumptions):
        usage = simulator.feed(request).usage
        if request.usage is None or _tokens(usage) != _tokens(request.usage):
            return False
    return True


def _tokens(usage: Usage) -> tuple[int, int, int, int]:
    return usage.read, usage.write_5m, usage.write_1h, usage.uncached
