"""Replays a trace under every placement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from kvbench.claude import tables
from kvbench.claude.billed import Bill, compare
from kvbench.claude.bound import lower_bound
from kvbench.claude.diagnosis import Diagnosis
from kvbench.claude.misses import diagnose
from kvbench.claude.placements import Placement, as_sent, named, none
from kvbench.claude.planner import plan
from kvbench.claude.prices import PriceBook
from kvbench.claude.simulate import Range, Trace, simulate, simulate_range
from kvbench.claude.traces.kv_cache_tester import KvCacheTesterTrace
from kvbench.claude.traces.open import FileTrace, open_trace
from kvbench.claude.traces.problems import Problems
from kvbench.claude.traces.recorded import RecordedTrace
from kvbench.claude.traces.transcripts import TranscriptTrace
from kvbench.config.errors import UserError
from kvbench.config.text import counted
from kvbench.experiments.claude_replay.config import ReplayConfig
from kvbench.runs.progress import ProgressFactory, staged

AUTO = "auto"
PLANS = ("planner", "planner_cautious")


@dataclass
class ReplayResult:
    """Results of a replay; `report.write_report` writes them."""

    costs: pd.DataFrame
    point_deltas: pd.DataFrame
    choice_deltas: pd.DataFrame
    doctor: str | None
    diagnosis: Diagnosis | None
    bill: Bill | None
    bound: int | None
    problems: list[str]
    notes: list[str]


def replay(cfg: ReplayConfig, progress: ProgressFactory) -> ReplayResult:
    """Replays a trace under every placement.

    Args:
        cfg: the configuration.
        progress: makes the progress display; a plan, a simulation and the causes of misses have a line each.

    Raises:
        UserError: anything wrong in the configuration; defects of the trace are collected unless strict.
    """
    placements: dict[str, Placement] = {"none": none, **{name: named(name) for name in cfg.placements}}
    if cfg.doctor not in (None, AUTO):
        named(cfg.doctor)
    prices = PriceBook.load(cfg.prices)
    trace = _trace(cfg, prices)
    if isinstance(trace, RecordedTrace):
        placements["as_sent"] = as_sent
    doctor = cfg.doctor
    if doctor == AUTO:
        doctor = "as_sent" if isinstance(trace, RecordedTrace) else "automatic"
    with staged(progress, list(_stages(cfg, doctor))) as begin:
        return _replay(cfg, trace, placements, prices, doctor, begin)


def _stages(cfg: ReplayConfig, doctor: str | None) -> Iterator[str]:
    """What `_replay` does, in order."""
    if cfg.plan:
        yield from PLANS
    yield "placements"
    yield from (f"placements, {code} read the other way" for code, *_ in cfg.switches.flips())
    yield f"causes of misses under {doctor}" if doctor else "tables"


def _replay(
    cfg: ReplayConfig,
    trace: Trace,
    placements: dict[str, Placement],
    prices: PriceBook,
    doctor: str | None,
    begin: Callable[[], None],
) -> ReplayResult:
    notes: list[str] = []
    bound = None
    if cfg.plan:
        # the cautious plan does not rely on 1h markers extending 5m entries (U2)
        cautious = replace(cfg.switches, ttl_lookup="matched")
        fixed = dict(placements)
        for name, assumptions in zip(PLANS, (cfg.switches, cautious), strict=True):
            begin()
            found = plan(trace.requests(assumptions), prices, assumptions, width=cfg.width, fixed=fixed)
            placements[name] = found.placement
            if not found.exact:
                notes.append(
                    f"{name} kept the {cfg.width} most promising states; the bound says what is left"
                )
        bound = lower_bound(trace.requests(cfg.switches), prices, cfg.switches)
    ranges = simulate_range(trace, placements, prices, cfg.switches, begin)
    begin()
    plain = ranges["none"].base
    if not plain.requests:
        raise UserError(f"trace={cfg.trace}: no request could be read; {'; '.join(_problems(trace)[:1])}")
    costs = pd.DataFrame([tables.cost_row(name, result, plain) for name, result in ranges.items()])
    choices = _choice_deltas(cfg, trace, placements, ranges, prices)
    diagnosis = diagnose(trace, named(doctor), prices, cfg.switches) if doctor else None
    bill = compare(trace, prices, cfg.switches) if isinstance(trace, RecordedTrace) else None
    if bill is not None:
        costs = pd.concat([costs, pd.DataFrame([tables.bill_row(bill)])], ignore_index=True)
    return ReplayResult(
        costs,
        tables.point_deltas(ranges),
        choices,
        doctor,
        diagnosis,
        bill,
        bound,
        _problems(trace),
        notes + _notes(trace),
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
    """Effect of every alternative choice on kv-cache-tester's sessions; plans hold for one choice only."""
    if not isinstance(trace, KvCacheTesterTrace):
        return pd.DataFrame()
    fixed = {name: placement for name, placement in placements.items() if name not in PLANS}
    changed = {
        name: simulate(
            # its defects are those of the trace, which are reported already
            replace(trace, choices=choices, problems=Problems()).requests(cfg.switches),
            fixed,
            prices,
            cfg.switches,
        )
        for name, choices in trace.choices.flips()
    }
    return tables.choice_deltas({name: ranges[name].base for name in fixed}, changed)


def _problems(trace: Trace) -> list[str]:
    return trace.problems.lines if isinstance(trace, FileTrace) else []


def _notes(trace: Trace) -> list[str]:
    if isinstance(trace, TranscriptTrace):
        sizes = sorted(trace.assumed.values()) or [0]
        return [
            "Assumed: transcripts hold neither the system prompt nor the tools. Each conversation begins with one "
            "block of them, as large as the reported input of its first call beyond its messages (here "
            f"{sizes[0]:,} to {sizes[-1]:,} tokens, median {sizes[len(sizes) // 2]:,}); what conversations share "
            "cannot be seen.",
            "Assumed: one marker behind that block and one at the end of the prompt, with the lifetime that was "
            "billed (as_sent); reminders and other text that Claude Code adds without writing it down are in the "
            "counts of the blocks beside them.",
        ]
    if isinstance(trace, RecordedTrace) and trace.rejected:
        name, message = trace.rejected[0]
        return [
            f"Rejected by the API: {counted(len(trace.rejected), 'request')}, the first is {name}: {message}"
        ]
    if not isinstance(trace, KvCacheTesterTrace):
        return []
    return [
        "The sessions have no content-block boundaries: `blocks` says what another cut moves.",
        "Most requests have no time to first byte: `ttft` says what taking the whole response time moves.",
        "Hash ids are local to a file, so what sessions share (tools, system) cannot be seen; "
        "each session is replayed with a separate cache.",
        "Up to 63 tokens at the end of each prompt have no hash id and count as uncached.",
        "Which lifetime is cheaper depends on the sessions; no result here says that one is in general.",
    ]
