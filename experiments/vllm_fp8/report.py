"""Tables and figures of `vllm_fp8`: separate ones per kind of device, so that CPU and GPU rows never share a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from kvbench.experiments.vllm_fp8.logprob_kl import KL_MEANING
from kvbench.report import clusters, stats, style
from kvbench.report.clusters import Clusters
from kvbench.report.format import Table, number
from kvbench.report.plots import save
from kvbench.report.summary import SAMPLE
from kvbench.runs.store import Record
from kvbench.vllm import page
from kvbench.vllm.campaign import capacity, of_kind
from kvbench.vllm.page import Dot, cut, dot_figure, milliseconds, scaled, spread

GUIDE = (
    "Everything here is measured. Capacity: tokens of context that the server says its cache holds; bits: memory of "
    "the cache over the numbers that so many tokens have, whatever dtype the server names.",
    KL_MEANING,
    "KL and top-1 are of the reference's own prompt and answer, fed to both servers. vLLM quantises the cache while it "
    "reads the prompt; the formats of kvbench quantise after a dense prefill. Their KLs are of different things.",
    "same: share of the reference's answer tokens before the first one that differs.",
    "Scores are paired with the reference on the same samples; the turns of a conversation count as one.",
    "cut: answers that ended at the token limit, not by themselves, of all answers.",
    "Latency: ms from sending (alone) or from the moment that a request was due (under load), so that waiting counts. "
    "A percentile is given where at least one answer lies beyond it. Goodput: whole answers whose first token came "
    "within the limit. server: vLLM's own histogram of the same requests, interpolated inside its buckets, which are "
    "seconds wide where times are long.",
)
HEADING = "Capacity, distance and latency of KV cache formats in vLLM."


def write_report(folder: Path, rows: Sequence[Record], order: Sequence[str]) -> Path:
    """Writes table.md and the figures.

    Args:
        folder: the run's.
        rows: of `run.run`.
        order: labels of the servers, reference first.

    Returns:
        The Markdown file.
    """
    reference = order[0]
    tables = []
    devices = dict.fromkeys(row["device"] for row in rows if "refused" not in row)
    for device in devices:
        on_device = [row for row in rows if row.get("device") == device]
        labels = [label for label in order if any(row["setup"] == label for row in on_device)]
        tables += [quality(on_device, labels, reference, device), latencies(on_device, labels, device)]
        save(
            _figure(on_device, labels, device), folder / "figures", f"fp8.{device.replace(' ', '-')}", HEADING
        )
    return page.write_page(folder, "vLLM: FP8 KV cache", rows, tables, GUIDE)


def quality(rows: Sequence[Record], labels: Sequence[str], reference: str, device: str) -> Table:
    """Capacity, distance from the reference, scores; rows of one device."""
    tasks = list(dict.fromkeys((row["task"], row["length"]) for row in of_kind(rows, "answer")))
    header = ["setup", "KV dtype", "scales", "bits", "capacity (tokens)", "of reference"]
    header += ["KL prompt", "KL answer", "covered", "top-1 prompt", "top-1 answer", "same"]
    header += ["cut", *(f"{task} {length}" for task, length in tasks), "note"]
    tokens = {row["setup"]: capacity(row) for row in of_kind(rows, "setup")}
    lines = []
    for label in labels:
        on_server = [row for row in rows if row["setup"] == label]
        answers = of_kind(on_server, "answer")
        bits = next((row["cache_bits"] for row in of_kind(on_server, "setup")), None)
        line = [label, on_server[0]["kv_cache_dtype"], _scales(on_server[0])]
        line += [number(bits, ".1f"), number(tokens.get(label), ",d")]
        line.append(_ratio(tokens.get(label), tokens.get(reference)))
        for part, column in (("prompt", "kl"), ("answer", "kl"), ("prompt", "covered")):
            line.append(
                "0" if label == reference and column == "kl" else _pooled(answers, part, column, ".4f")
            )
        line += [_pooled(answers, part, "top1", ".3f") for part in ("prompt", "answer")]
        line.append(_same(answers))
        line.append(cut(answers))
        line += [_score(rows, label, reference, task) for task in tasks]
        lines.append([*line, on_server[0]["note"]])
    versions = ", ".join(dict.fromkeys(str(row["vllm"]) for row in rows))
    counts = [len([row for row in of_kind(rows, "answer") if row["setup"] == label]) for label in labels]
    caption = (
        f"{rows[0]['model']}, vLLM {versions} on {device}, reference {reference}. {min(counts)} prompts per setup. "
        f"Scores: mean [95 % interval: {stats.MEAN_INTERVAL[stats.VERSION]}]; in brackets the difference from the "
        f"reference [{stats.DIFFERENCE_INTERVAL[stats.VERSION]}]."
    )
    return Table(f"Capacity and quality: {device}", caption, header, lines)


def latencies(rows: Sequence[Record], labels: Sequence[str], device: str) -> Table:
    """Time to first token and per token, alone and under load; rows of one device."""
    header = [
        "setup",
        "TTFT alone",
        "per token alone",
        "TTFT p50",
        "TTFT p90",
        "per token p50",
        "per token p90",
    ]
    header += ["server TTFT p50", "server per token p50", "good", "goodput/s", "failed", "preempted", "note"]
    lines = []
    for label in labels:
        on_server = [row for row in rows if row["setup"] == label]
        answers = of_kind(on_server, "answer")
        alone = [_median(answers, "ttft_s"), _median(answers, "per_token_s")]
        load = next(iter(of_kind(on_server, "load")), None)
        under_load = ["-"] * 10 if load is None else _under_load(load)
        lines.append([label, *alone, *under_load, on_server[0]["note"]])
    loads = of_kind(rows, "load")
    limit = f", first token within {loads[0]['ttft_limit_s']:g} s" if loads else ""
    caption = f"{rows[0]['model']} on {device}. Milliseconds, medians where nothing else is said{limit}."
    return Table(f"Latency: {device}", caption, header, lines)


def _under_load(load: Record) -> list[str]:
    names = ("ttft_p50_s", "ttft_p90_s", "per_token_p50_s", "per_token_p90_s")
    line = [milliseconds(load[name]) for name in (*names, "server_ttft_p50_s", "server_per_token_p50_s")]
    line += [f"{load['good']}/{load['requests']}", number(load["goodput_per_s"], ".3f"), str(load["failed"])]
    return [*line, number(load["server_preemptions"], ".0f")]


def _figure(rows: Sequence[Record], labels: Sequence[str], device: str) -> style.Figure:
    answers = {label: [r for r in of_kind(rows, "answer") if r["setup"] == label] for label in labels}
    loads = {row["setup"]: row for row in of_kind(rows, "load")}
    tokens = {row["setup"]: capacity(row) for row in of_kind(rows, "setup")}
    whole = {name: tokens.get(name) for name in labels}
    columns = {
        "capacity (1,000 tokens)": {name: _plain(scaled(whole[name], 0.001)) for name in labels},
        "KL over the prompt (nats)": {name: _plain(_mean(answers[name], "prompt", "kl")) for name in labels},
        "first token under load (s)": {name: _loaded(loads.get(name)) for name in labels},
        "per token, alone (ms)": {
            name: spread([scaled(row["per_token_s"], 1000) for row in answers[name]]) for name in labels
        },
    }
    notes = sorted({row["note"] for row in rows if row["note"]})
    text = f"{rows[0]['model']}, vLLM {rows[0]['vllm']} on {device}. {f'FP8: {notes[0]}. ' if notes else ''}"
    text += (
        "KL: a lower bound, mean over positions. First token: p50, bar to p90. Per token: median, bar from the 20th to "
        "the 80th percentile over prompts. Dotted: the reference."
    )
    with mpl.rc_context(style.SETTINGS):
        return dot_figure({title: {"": dots} for title, dots in columns.items()}, text)


def _plain(value: float | None) -> Dot | None:
    return None if value is None else Dot(value, value, value, f"{value:.3g}")


def _loaded(load: Record | None) -> Dot | None:
    """The first token under load: median, with a bar to the 90th percentile where it is known."""
    if load is None or load["ttft_p50_s"] is None:
        return None
    middle, high = load["ttft_p50_s"], load["ttft_p90_s"]
    return Dot(middle, middle, middle if high is None else high, f"{middle:.3g}")


def _scales(row: Record) -> str:
    if row["scales"]:
        return "calibrated"
    return "1" if row["kv_cache_dtype"].startswith("fp8") else "-"


def _ratio(value: int | None, of: int | None) -> str:
    return f"{value / of:.2f}x" if value and of else "-"


def _mean(answers: Sequence[Record], part: str, column: str) -> float | None:
    """Mean over positions, so that prompts are weighted by their length; None without any."""
    compared = [row for row in answers if row[f"{part}_positions"]]
    positions = sum(row[f"{part}_positions"] for row in compared)
    weighted = math.fsum(row[f"{part}_{column}"] * row[f"{part}_positions"] for row in compared)
    return weighted / positions if positions else None


def _pooled(answers: Sequence[Record], part: str, column: str, form: str) -> str:
    return number(_mean(answers, part, column), form)


def _same(answers: Sequence[Record]) -> str:
    total = sum(row["reference_tokens"] for row in answers if "reference_tokens" in row)
    return f"{sum(row['same_tokens'] for row in answers) / total:.2f}" if total else "1"


def _score(rows: Sequence[Record], label: str, reference: str, task: tuple[str, int]) -> str:
    def answers(setup: str) -> pd.DataFrame:
        rows_of_setup = [row for row in of_kind(rows, "answer") if row["setup"] == setup]
        frame = pd.DataFrame([row for row in rows_of_setup if (row["task"], row["length"]) == task])
        return frame.assign(cluster=clusters.names(frame)) if len(frame) else frame

    mine, of_reference = answers(label), answers(reference)
    if mine.empty:
        return "-"
    scores = Clusters(mine["score"], mine["cluster"])
    low, high = stats.score_interval(scores)
    text = f"{scores.mean:.2f} [{low:.2f}, {high:.2f}]"
    if label == reference or of_reference.empty:
        return text
    pairs = mine.merge(of_reference, on=SAMPLE, suffixes=("", "_reference"))
    differences = Clusters(pairs["score"] - pairs["score_reference"], pairs["cluster"])
    if not len(differences):
        return text
    low, high = stats.difference_interval(differences)
    return f"{text} ({differences.mean:+.2f} [{low:+.2f}, {high:+.2f}])"


def _middle(answers: Sequence[Record], column: str) -> float | None:
    values = [row[column] for row in answers if row[column] is not None]
    return statistics.median(values) if values else None


def _median(answers: Sequence[Record], column: str) -> str:
    return milliseconds(_middle(answers, column))
