"""The tables of docs/gpu.md and docs/reproduce.md: lower bounds on time and cost of its GPU commands."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator

from kvbench.cost.duration import duration
from kvbench.cost.hardware import hardware
from kvbench.cost.shapes import model_shape
from kvbench.report.format import markdown_table
from kvbench.runs.config import load

DEVICES = ("a40", "a100_80gb", "h100_sxm")
_BLOCK = re.compile(r"^```bash gpu\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(document: str) -> Iterator[tuple[str, list[str]]]:
    """Purpose (the comment above) and arguments of each command in blocks marked `bash gpu`."""
    for block in _BLOCK.findall(document):
        purpose = ""
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("#"):
                purpose = line.removeprefix("#").strip()
            elif line.startswith("kvbench run "):
                yield purpose, shlex.split(line)[2:]


def table(document: str) -> str:
    """Prompts, cells, memory, and seconds and rent per device, of each of these commands.

    Args:
        document: text of docs/gpu.md or docs/reproduce.md.
    """
    devices = [hardware(name) for name in DEVICES]
    header = ["run", "prompts", "cells", "GB", *(f"{device.name}: s, USD" for device in devices)]
    rows = []
    for purpose, arguments in commands(document):
        # runs nothing; the folder must be writable all the same
        cfg = load([*arguments, f"run_dir={tempfile.gettempdir()}"])
        shape = model_shape(cfg.model.name)
        found = duration(cfg, shape, *devices)
        row = [purpose, f"{found[0].prompts:,}", f"{found[0].cells:,}", f"{found[0].memory / 1e9:.0f}"]
        for device, run in zip(devices, found, strict=True):
            fits = run.memory < 0.9 * device.memory
            price = "" if run.usd is None else f", {run.usd:.2g}"
            row.append(f"{run.seconds:,.0f}{price}" if fits else "does not fit")
        rows.append(row)
    rents = ", ".join(f"{device.name} {device.usd_per_hour} ({device.rent_note})" for device in devices)
    caption = (
        f"Modelled, lower bounds: bf16, attainable rates; rent in USD per hour, one provider's: {rents}."
    )
    return f"{markdown_table(header, rows)}\n\n{caption}"
