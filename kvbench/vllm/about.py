"""On what a table of the vLLM experiments was measured, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvbench.config.text import counted
from kvbench.runs.store import Record


def about(servers: Sequence[Record], rows: Sequence[Record]) -> list[str]:
    """Lines of Markdown: date, versions, hardware, and each server's flags and KV cache.

    Args:
        servers: facts of the servers, one row each; with `setup`, their label, where there are several.
        rows: all rows that were measured on them.
    """
    days = sorted({row["time"][:10] for row in [*servers, *rows] if "time" in row})
    lines = [f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))}."] if days else []
    machines = dict.fromkeys(_machine(facts) for facts in servers)
    lines += machines
    for facts in servers:
        name = f"{facts['setup']}: " if facts.get("setup") else ""
        lines.append(name + "; ".join(_cache(facts["capacity"]) + _start(facts)))
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


def _cache(capacity: Mapping[str, Any] | None) -> list[str]:
    if not capacity:
        return ["the server does not say its KV cache"]
    blocks = f"KV cache of {capacity['tokens']:,} tokens in blocks of {capacity['block_size']}"
    return [f"{blocks}, dtype {capacity['dtype']}"]


def _start(facts: Record) -> list[str]:
    return [f"flags `{facts['flags']}`"] if facts.get("flags") else []
