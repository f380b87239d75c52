"""Pages of the experiments on vLLM servers: versions and hardware, tables, times and bar figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvbench.config.text import counted
from kvbench.report import style
from kvbench.report.format import Table
from kvbench.runs.store import Record
from kvbench.vllm.campaign import of_kind


def write_page(
    folder: Path,
    title: str,
    rows: Sequence[Record],
    parts: Iterable[Table | str],
    guide: Sequence[str],
    server_row: str = "setup",
) -> Path:
    """Writes table.md.

    Args:
        folder: the run's.
        title: of the page.
        rows: all rows of the run, those of servers that did not start included.
        parts: tables, and lines between them.
        guide: how to read them, one line each.
        server_row: kind of the rows with the facts of a server.

    Returns:
        The file.
    """
    measured = [row for row in rows if row["row"] != server_row]
    notes = dict.fromkeys(row["note"] for row in measured if row.get("note"))
    refused = [f"- {row['setup']}: {row['refused']}" for row in rows if "refused" in row]
    lines = [f"# {title}", ""]
    lines += [*(f"- **{note}**" for note in notes), ""] if notes else []
    lines += provenance(of_kind(rows, server_row), measured)
    lines += [part if isinstance(part, str) else part.markdown() for part in parts]
    lines += ["### Refused by vLLM", "", *refused, ""] if refused else []
    lines += ["## How to read", "", *(f"- {line}" for line in guide), ""]
    path = folder / "table.md"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def cut(answers: Sequence[Record]) -> str:
    """Answers that ended at the token limit, of all, as `3/20`."""
    return f"{sum(row['stop'] == 'length' for row in answers)}/{len(answers)}"


def provenance(servers: Sequence[Record], rows: Sequence[Record]) -> list[str]:
    """Lines of Markdown with date, versions and hardware, and each server's flags and KV cache.

    Args:
        servers: facts of the servers, one row each; labelled by `setup` if there are several.
        rows: all rows measured on them.
    """
    days = sorted({row["time"][:10] for row in [*servers, *rows] if "time" in row})
    lines = [f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))}."] if days else []
    lines += dict.fromkeys(_machine(facts) for facts in servers)
    for facts in servers:
        name = f"{facts['setup']}: " if facts.get("setup") else ""
        lines.append(name + "; ".join([_cache(facts["capacity"]), *_flags(facts)]))
    loads = [row["load_average"] for row in rows if "load_average" in row]
    if loads:
        lines.append(
            f"Load average of the client's machine while measuring: {min(loads):.1f} to {max(loads):.1f}. Times on a "
            "busy machine scatter; hits do not."
        )
    return [*(f"- {line}" for line in lines), ""]


def _machine(facts: Record) -> str:
    package = facts.get("package", "a running server")
    hardware = f": {facts['hardware']}" if facts.get("hardware") else ""
    text = f"{facts['model']} on vLLM {facts['vllm']} ({package}), device {facts['device']}{hardware}"
    if not facts.get("versions"):
        return f"{text}."
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    threads = facts["variables"].get("OMP_NUM_THREADS")
    used = f", {counted(int(threads), 'thread')}" if threads else ""
    return f"{text}{used}; {versions}; attention {facts['backend']}."


def _cache(capacity: Mapping[str, Any] | None) -> str:
    if not capacity:
        return "the server does not report the size of its KV cache"
    blocks = f"KV cache of {capacity['tokens']:,} tokens in blocks of {capacity['block_size']}"
    return f"{blocks}, dtype {capacity['dtype']}"


def _flags(facts: Record) -> list[str]:
    return [f"flags `{facts['flags']}`"] if facts.get("flags") else []


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, or a dash if they are unknown."""
    if seconds is None:
        return "-"
    return f"{1000 * seconds:,.0f}" if seconds >= 0.01 else f"{1000 * seconds:.2f}"


def scaled(value: float | None, factor: float) -> float | None:
    """A value in another unit; None if it is unknown."""
    return None if value is None else factor * value


def bar_figure(panels: Mapping[str, Mapping[str, Sequence[float | None]]], caption: str) -> style.Figure:
    """Horizontal bars, one panel per quantity and one row per label; the further values of a row are lighter bars.

    Args:
        panels: by title the values of each label; None is unknown and not drawn.
        caption: small print below.
    """
    count = max(len(bars) for bars in panels.values())
    figure, all_axes = style.panels(len(panels), height=0.9 + 0.24 * count)
    for axes, (title, bars) in zip(all_axes, panels.items(), strict=True):
        for row, values in enumerate(bars.values()):
            known = [(order, value) for order, value in enumerate(values) if value is not None]
            # the longest first, so that the shorter ones stay visible on top of it
            for order, value in sorted(known, key=lambda item: -item[1]):
                axes.barh(row, value, color=style.COLOURS[0], alpha=1.0 if order == 0 else 0.35)
            text = ", ".join("-" if value is None else _short(value) for value in values)
            end = max((value for _, value in known), default=0.0)
            axes.text(end, row, f"  {text}", va="center", fontsize=8)
        axes.set_yticks(range(len(bars)), list(bars))
        axes.set_ylim(len(bars) - 0.4, -0.6)
        longest = max(
            (value for values in bars.values() for value in values if value is not None), default=0.0
        )
        axes.set_xlim(0, 1.35 * max(longest, 1e-9))
        axes.grid(visible=False, axis="y")
        axes.set_title(title)
    style.caption(figure, caption)
    return figure


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
