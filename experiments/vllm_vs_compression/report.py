"""Table and figures of `vllm_vs_compression`: the same prompts and the same memory, times of each engine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import pandas as pd

from kvbench.config.errors import UserError
from kvbench.report import clusters, stats, style
from kvbench.report.clusters import Clusters
from kvbench.report.format import MISSING, Table, number
from kvbench.report.plots import save
from kvbench.runs.store import Record
from kvbench.vllm import page
from kvbench.vllm.campaign import capacity, of_kind
from kvbench.vllm.page import Dot, cut, dot_figure, milliseconds, spread
from kvbench.vllm.servers import CPU_FP8

GUIDE = (
    "All rows answered the same prompts, token by token (checked by hash), greedily.",
    "bytes per token: of kvbench the measured bytes resident after compression, indices and scales included, over the "
    "tokens that were compressed; of vLLM its cache's memory over the tokens that it says fit.",
    "tokens in N MiB: of vLLM measured, the capacity that the server reports; of kvbench modelled, N MiB over bytes "
    "per token: no allocator, no block rounding. A budget in tokens keeps its size when the prompt grows, so that its "
    "bytes per token hold for this length only.",
    "read per step: bytes of the KV cache that a decode step reads; of vLLM modelled as all of the prompt's.",
    "TTFT and ms per token: one request at a time. vLLM's are measured at the client, HTTP included; kvbench's are "
    "prefill + compression + one decode step, and the median decode step, of the isolated run. The engines differ, so "
    "compare a row with the dense row of its own engine: that is what the columns 'of dense' are.",
    "prefix caching: the same prompt sent a second time; only whole blocks are found.",
    "cut: answers that ended at the token limit, not by themselves, of all answers.",
    "KL: kvbench's is over the full vocabulary on dense's own answer; vLLM's is in `vllm_fp8`.",
)


TIMES: tuple[Literal["ttft", "step"], ...] = ("ttft", "step")
HEADING = "Score, memory and times of compressed caches in kvbench and of vLLM, on the same prompts."


@dataclass(frozen=True)
class Line:
    """One row of the table, before formatting; None is unknown.

    Attributes:
        label: the method, with its budget.
        engine: kvbench or vLLM.
        scores: by task.
        cut: answers that ended at the token limit, of all.
        per_token: bytes per prompt token.
        fits: tokens that fit into the pool.
        fits_measured: whether the engine itself reports `fits`; it is modelled otherwise.
        read: bytes read per decode step.
        ttft: seconds to the first token, one value per prompt.
        step: seconds per token, one value per prompt.
        kl: nats, mean over samples.
        note: a remark in the last column.
    """

    label: str
    engine: str
    scores: dict[str, Clusters]
    cut: str
    per_token: float | None
    fits: int | None
    fits_measured: bool
    read: float | None
    ttft: Sequence[float | None]
    step: Sequence[float | None]
    kl: float | None = None
    note: str = ""

    def median(self, name: Literal["ttft", "step"]) -> float | None:
        """Median of a time in seconds; None without a value."""
        known = [value for value in getattr(self, name) if value is not None]
        return statistics.median(known) if known else None


def write_report(
    folder: Path,
    accuracy: Sequence[Record],
    isolated: Sequence[Record],
    served: Sequence[Record],
    order: Sequence[str],
    pool: int,
) -> Path:
    """Writes table.md and the figures: one table per length and kind of device.

    Args:
        folder: the run's.
        accuracy: rows of kvbench's accuracy run.
        isolated: rows of its efficiency run at batch 1.
        served: of `run.run`.
        order: labels of the servers, vLLM's dense first.
        pool: bytes of KV cache memory.

    Returns:
        The Markdown file.

    Raises:
        UserError: the two sides did not answer the same prompts.
    """
    answers = of_kind(served, "answer")
    kinds = sorted({_device_kind(row) for row in accuracy})
    devices = dict.fromkeys([*kinds, *(row["device"] for row in answers)])
    lengths = sorted({row["length"] for row in accuracy})
    tables = []
    for device in devices:
        for length in lengths:
            ours = [row for row in accuracy if row["length"] == length and _device_kind(row) == device]
            timed = [row for row in isolated if row["length"] == length and _device_kind(row) == device]
            theirs = [row for row in served if row.get("device") == device]
            theirs = [row for row in theirs if row["row"] == "setup" or row["length"] == length]
            if ours and of_kind(theirs, "answer"):
                _check_prompts(ours, of_kind(theirs, "answer"))
            lines = [*compressed(ours, timed, pool), *vllm(theirs, order, ours)]
            if not lines:
                continue
            tables.append(table(lines, ours, theirs, device, length, pool))
            figure = _figure(lines, f"{(ours or theirs)[0]['model']}, {length} tokens, {device}", pool)
            save(figure, folder / "figures", f"versus.{device.replace(' ', '-')}.{length}", HEADING)
    return page.write_page(folder, "vLLM and compression", served, tables, GUIDE)


def compressed(rows: Sequence[Record], isolated: Sequence[Record], pool: int) -> list[Line]:
    """Lines of kvbench's methods, dense first; rows of one length."""
    found = []
    # dense keeps all tokens to compress; the prompt's last token is fed as a decode step
    whole = {row["sample_hash"]: row["kept_tokens"] for row in rows if row["method"] == "dense"}
    for label, budget in dict.fromkeys((row["method"], row["budget_requested"]) for row in rows):
        accuracy = [row for row in rows if (row["method"], row["budget_requested"]) == (label, budget)]
        times = [row for row in isolated if (row["method"], row["budget_requested"]) == (label, budget)]
        per_token = statistics.mean(row["bytes_resident"] / whole[row["sample_hash"]] for row in accuracy)
        kls = [row["kl_to_dense"] for row in accuracy if row["kl_to_dense"] is not None]
        found.append(
            Line(
                label=f"{label} {budget}".strip(),
                engine="kvbench",
                scores=_scores(accuracy, "score"),
                cut=cut(accuracy),
                per_token=per_token,
                fits=int(pool / per_token),
                fits_measured=False,
                read=statistics.mean(row["bytes_read_per_step"] for row in accuracy),
                ttft=[
                    row["prefill_s"] + row["compress_s"] + row["decode_ms_per_token"] / 1000 for row in times
                ],
                step=[row["decode_ms_per_token"] / 1000 for row in times],
                kl=statistics.mean(kls) if kls else None,
            )
        )
    return sorted(found, key=lambda line: line.label != "dense")


def vllm(rows: Sequence[Record], order: Sequence[str], ours: Sequence[Record]) -> list[Line]:
    """Lines of the servers, and of prefix caching on the first one; rows of one length.

    Args:
        rows: of the servers.
        order: labels of the servers, vLLM's dense first.
        ours: rows of kvbench; the answers of its dense rows are compared with those of the first server.
    """
    found = []
    dense = {row["sample_hash"]: row["output"] for row in ours if row["method"] == "dense"}
    for label in order:
        answers = [row for row in of_kind(rows, "answer") if row["setup"] == label]
        facts = next((row for row in of_kind(rows, "setup") if row["setup"] == label), None)
        if not answers or facts is None:
            continue
        bits, numbers = facts["cache_bits"], facts["numbers_per_token"]
        per_token = None if bits is None else bits / 8 * numbers
        tokens = statistics.mean(row["prompt_tokens"] for row in answers)
        read = None if per_token is None else per_token * tokens
        for warm, name in ((False, f"vLLM {label}"), (True, "vLLM prefix caching")):
            if warm and label != order[0]:
                continue
            part = "warm_" if warm else ""
            note = _warm_note(answers) if warm else answers[0]["note"]
            if label == order[0] and not warm and dense:
                same = sum(row["output"] == dense[row["sample_hash"]] for row in answers)
                compared = f"{same} of {len(answers)} answers are dense's of kvbench"
                note = "; ".join(filter(None, [note, compared]))
            found.append(
                Line(
                    label=name,
                    engine="vLLM",
                    scores=_scores(answers, f"{part}score"),
                    cut=MISSING if warm else cut(answers),
                    per_token=per_token,
                    fits=capacity(facts),
                    fits_measured=True,
                    read=read,
                    ttft=[row[f"{part}ttft_s"] for row in answers],
                    step=[row[f"{part}per_token_s"] for row in answers],
                    note=note,
                )
            )
    return found


def table(
    lines: Sequence[Line],
    ours: Sequence[Record],
    theirs: Sequence[Record],
    device: str,
    length: int,
    pool: int,
) -> Table:
    """The table of one length and one kind of device."""
    tasks = list(dict.fromkeys(task for line in lines for task in line.scores))
    # dense comes first on both sides
    dense_lines = {line.engine: line for line in reversed(lines)}
    header = ["method", "engine", *tasks, "cut", "KL", "bytes per token", f"tokens in {pool >> 20} MiB", ""]
    header += ["read per step (MB)", "TTFT ms", "of dense", "ms per token", "of dense", "note"]
    body = []
    for line in lines:
        dense = dense_lines[line.engine]
        cells = [
            line.label,
            line.engine,
            *(_score(line, task) for task in tasks),
            line.cut,
            number(line.kl, ".4f"),
        ]
        cells += [number(line.per_token, ",.0f"), number(line.fits, ",d")]
        cells.append("measured" if line.fits_measured else "modelled")
        cells.append("-" if line.read is None else f"{line.read / 1e6:.2f}")
        for name in TIMES:
            value = line.median(name)
            cells += [milliseconds(value), _share(value, dense.median(name))]
        body.append([*cells, line.note])
    versions = ", ".join(dict.fromkeys(f"vLLM {row['vllm']}" for row in theirs))
    ours_on = ", ".join(dict.fromkeys(row["device"] for row in ours))
    dtypes = ", ".join(dict.fromkeys(row["dtype"] for row in ours))
    some = (ours or theirs)[0]
    caption = (
        f"{some['model']}, {length} tokens, n = {_samples(lines[0])} samples. kvbench: {dtypes or '-'} on "
        f"{ours_on or '-'}. {versions or 'no vLLM'} on {device}. "
        f"Scores: mean [95 % interval: {stats.MEAN_INTERVAL[stats.VERSION]}]."
    )
    return Table(f"{some['model']}, {length} tokens, {device}", caption, header, body)


def _figure(lines: Sequence[Line], subject: str, pool: int) -> style.Figure:
    """The engines in blocks of their own; times as shares of those of the engine's own dense."""
    engines: dict[str, list[Line]] = {}
    for line in lines:
        engines.setdefault(line.engine, []).append(line)
    tasks = dict.fromkeys(task for line in lines for task in line.scores)
    draw: dict[str, Callable[[Line, Line], Dot | None]] = {
        f"score: {task}": partial(_score_dot, task=task) for task in tasks
    }
    draw[f"thousands of tokens in {pool >> 20} MiB"] = _fits_dot
    draw["first token, x of own dense"] = partial(_time_dot, name="ttft")
    draw["per token, x of own dense"] = partial(_time_dot, name="step")
    columns = {
        title: {
            engine: {line.label.removeprefix("vLLM "): dot(line, rows[0]) for line in rows}
            for engine, rows in engines.items()
        }
        for title, dot in draw.items()
    }
    text = (
        f"{subject}, n = {_samples(lines[0])} samples. Filled: measured; open: modelled, bytes per token into the "
        "memory. Scores: 95 % intervals; times: medians, bars from the 20th to the 80th percentile over prompts; the "
        "engines' times are not comparable. Dotted: dense of the same engine."
    )
    text += f" FP8 of vLLM: {CPU_FP8}." if any(line.note == CPU_FP8 for line in lines) else ""
    with mpl.rc_context(style.SETTINGS):
        return dot_figure(columns, text, {f"score: {task}": 1.0 for task in tasks})


def _score_dot(line: Line, _: Line, task: str) -> Dot | None:
    if task not in line.scores:
        return None
    low, high = stats.score_interval(line.scores[task])
    return Dot(line.scores[task].mean, low, high, f"{line.scores[task].mean:.2f}")


def _fits_dot(line: Line, _: Line) -> Dot | None:
    if line.fits is None:
        return None
    value = line.fits / 1000
    return Dot(value, value, value, f"{value:.1f}", modelled=not line.fits_measured)


def _time_dot(line: Line, dense: Line, name: Literal["ttft", "step"]) -> Dot | None:
    return spread(getattr(line, name), of=dense.median(name) or 0.0, form="{:,.0f} ms", unit=1000)


def _check_prompts(ours: Sequence[Record], theirs: Sequence[Record]) -> None:
    one, other = ({row["sample_hash"] for row in rows} for rows in (ours, theirs))
    if one != other:
        raise UserError(
            f"run_dir: kvbench answered {len(one)} prompts and vLLM {len(other)}, {len(one & other)} in common; "
            "give a new run_dir"
        )


def _device_kind(row: Record) -> str:
    """Kind of device of a row of kvbench."""
    return "cpu" if "CPU" in row["device"] else "cuda"


def _warm_note(rows: Sequence[Record]) -> str:
    cached = [row["warm_cached_tokens"] for row in rows]
    hits = (
        ""
        if None in cached
        else f"{sum(cached) / sum(row['prompt_tokens'] for row in rows):.1%} of tokens found"
    )
    changed = sum(not row["warm_same"] for row in rows)
    return hits + (
        f", {changed} of {len(rows)} answers differ from the cold ones" if changed else ", answers as cold"
    )


def _scores(rows: Sequence[Record], column: str) -> dict[str, Clusters]:
    frame = pd.DataFrame(rows)
    frame["cluster"] = clusters.names(frame)
    return {
        str(task): Clusters(group[column], group["cluster"])
        for task, group in frame.groupby("task", sort=False)
    }


def _samples(line: Line) -> int:
    return sum(len(scores) for scores in line.scores.values())


def _score(line: Line, task: str) -> str:
    if task not in line.scores:
        return MISSING
    low, high = stats.score_interval(line.scores[task])
    return f"{line.scores[task].mean:.2f} [{low:.2f}, {high:.2f}]"


def _share(value: float | None, of: float | None) -> str:
    return f"{value / of:.2f}x" if value is not None and of else "-"
