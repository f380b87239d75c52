"""What a run would do, need and cost, before anything is loaded: `kvbench plan`, and `dry=true`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kvbench.cli.dry import taken
from kvbench.config.compose import compose
from kvbench.config.errors import UserError
from kvbench.config.text import counted
from kvbench.cost.duration import KINDS, Work, planned
from kvbench.cost.hardware import Hardware, hardware
from kvbench.cost.memory import Memory, largest_chunk, memory
from kvbench.cost.roofline import USABLE
from kvbench.cost.shapes import ModelShape, model_shape
from kvbench.models import embedded
from kvbench.report.format import markdown_table
from kvbench.runs.config import RunConfig, validate
from kvbench.runs.follow import Follow
from kvbench.runs.store import Store

#: bytes of a stored row without its tokens, and per token of the answer; as rows of results/quickstart have them
ROW, PER_TOKEN = 2000, 10
#: formats that are tried where memory does not suffice, the mildest first
FORMATS = ("fp8_e4m3", "int4")
GB = 1e9


def plan(overrides: Sequence[str], config_dirs: Sequence[str]) -> str:
    """The plan of `kvbench run OVERRIDES`, as text.

    Args:
        overrides: as for a run; `hardware=NAME` is a device of conf/hardware or a file.
        config_dirs: the user's configuration folders.

    Raises:
        UserError: an override, a kind of run that has no cells, or prompts of unknown length.
    """
    rest, own = taken(overrides)
    device = hardware(own["hardware"], config_dirs) if "hardware" in own else None
    composed = compose(rest, config_dirs)
    if (kind := composed.data.get("kind")) not in KINDS:
        raise UserError(f"kind: {kind} has no cells to plan, allowed: {', '.join(KINDS)}")
    cfg = validate(composed)
    name = cfg.model.path or cfg.model.name
    shape = model_shape(name if cfg.model.path or name != embedded.NAME else embedded.NAME, config_dirs)
    element = 4 if cfg.model.dtype == "float32" else 2
    work = planned(cfg, shape, element)
    on = f" on {device.title}" if device else "; hardware=NAME adds time, rent and what fits"
    lines = [
        f"plan of {cfg.name}: {shape.name} in {8 * element} bits{on}",
        "",
        _table(cfg, work, device),
        "",
        f"modelled: memory without the allocator's losses{', time as a lower bound' if device else ''}",
        _folder(cfg, work),
    ]
    if cfg.snapshots.keep:
        lines.append(_snapshots(cfg, work))
    if device is not None:
        lines += [f"does not fit: {line}" for part in work for line in _advice(cfg, part, shape, device)]
    return "\n".join(lines)


def _table(cfg: RunConfig, work: Sequence[Work], device: Hardware | None) -> str:
    header = ["task", "length", "prompts", "prefills", "cells", "peak GB", "where"]
    header += ["time", "USD"] if device else []
    rows, total = [], 0.0
    for part in work:
        found = part.memory(cfg)
        where = "prefill" if found.prefill > found.decode else "decode"
        row = [part.task, f"{part.length:,}", f"{part.prompts:,}", f"{part.prompts:,}"]
        row += [f"{part.prompts * part.cells(cfg):,}", f"{found.peak / GB:.1f}", where]
        if device:
            spent = part.prompts * part.seconds(cfg, device)
            total += spent
            row += _cost(spent, device)
        rows.append(row)
    prompts = sum(part.prompts for part in work)
    cells = sum(part.prompts * part.cells(cfg) for part in work)
    largest = max(part.memory(cfg).peak for part in work)
    row = ["all", "", f"{prompts:,}", f"{prompts:,}", f"{cells:,}", f"{largest / GB:.1f}", ""]
    rows.append(row + (_cost(total, device) if device else []))
    return markdown_table(header, rows)


def _cost(seconds: float, device: Hardware) -> list[str]:
    price = device.usd_per_hour
    hours, rest = divmod(round(seconds), 3600)
    clock = f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{seconds:.3g} s"
    return [clock, "" if price is None else f"{price * seconds / 3600:.2g}"]


def _folder(cfg: RunConfig, work: Sequence[Work]) -> str:
    """The run's folder: what is done there, what the rows will take, and what is free."""
    folder = Path(cfg.run_dir)
    done = len(Follow(Store(folder)).done) if folder.is_dir() else 0
    cells = sum(part.prompts * part.cells(cfg) for part in work)
    answer = max(part.accounts[0].new for part in work)
    size, free = cells * (ROW + PER_TOKEN * answer), _free(folder)
    short = "; that is too little" if size > free else ""
    there = f"{counted(done, 'cell')} in it" if done else "no cell in it yet"
    return (
        f"folder: {folder}, {there}; rows take about {size / GB:.2g} GB, {free / GB:.0f} GB are free{short}"
    )


def _snapshots(cfg: RunConfig, work: Sequence[Work]) -> str:
    """What the kept prefills will take; prompts of one context share theirs, which is not counted here."""
    folder, most = cfg.snapshots.place(cfg.run_dir), cfg.snapshots.max_gb * GB
    size, free = sum(part.prompts * part.memory(cfg).snapshot for part in work), _free(folder)
    kept = min(size, most)
    capped = (
        f", of which snapshots.max_gb={cfg.snapshots.max_gb:g} keeps the last ones" if size > most else ""
    )
    short = "; that is too little" if kept > free else ""
    return (
        f"snapshots: {folder}; they take about {size / GB:.2g} GB{capped}, {free / GB:.0f} GB are free{short}"
    )


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    place = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    return shutil.disk_usage(place).free


def _advice(cfg: RunConfig, part: Work, shape: ModelShape, device: Hardware) -> Iterator[str]:
    """What is too large, and what would fit."""
    found, room = part.memory(cfg), USABLE * device.memory
    name = f"{part.task} {part.length:,}"
    usable = f"{room / GB:.0f} GB, {USABLE:.0%} of {device.memory / GB:.0f}"
    if found.weights > room:
        yield f"{name}: the weights alone take {found.weights / GB:.1f} GB of {usable}; take another device"
        return
    if found.weights + found.snapshot > room:
        yield (
            f"{name}: weights and the prompt's whole cache take {(found.weights + found.snapshot) / GB:.1f} GB of "
            f"{usable}; take a shorter length or another device"
        )
        return
    if found.prefill > room:
        chunk = largest_chunk(found, shape, part.accounts[0].element, room, cfg.model.prefill_chunk)
        would = f"model.prefill_chunk={chunk} would" if chunk else "no chunk does; take another device"
        yield f"{name}: the prefill takes {found.prefill / GB:.1f} GB of {usable}; {would}"
    if found.decode > room:
        yield f"{name}: decoding takes {found.decode / GB:.1f} GB of {usable}; {_split(cfg, part, found, room)}"


def _split(cfg: RunConfig, part: Work, found: Memory, room: float) -> str:
    """What makes decoding fit: smaller blocks of cells, which change no number, or a format."""
    if cfg.kind == "efficiency":
        most = max((n for n in cfg.efficiency.batch if _alone(cfg, part, n) <= room), default=0)
        return f"efficiency.batch up to {most} would" if most else "no batch of efficiency.batch does"
    if blocks := found.blocks(room):
        return f"{blocks} blocks of cells would, and a run makes them by itself when memory runs out"
    for name in FORMATS:
        if _in_format(cfg, part, found, name) <= room:
            return f"format {name} would (method.NAME.format={name}), a cell at a time"
    return "not even one cell at a time does; take fewer tokens, a shorter length or another device"


def _alone(cfg: RunConfig, part: Work, batch: int) -> float:
    one = replace(cfg, efficiency=replace(cfg.efficiency, batch=(batch,)))
    return part.memory(one).decode


def _in_format(cfg: RunConfig, part: Work, found: Memory, name: str) -> float:
    """Bytes of decoding the largest cell alone, stored in a format."""
    from kvbench.cost.accounting import account

    index = max(range(len(found.cells)), key=found.cells.__getitem__, default=None)
    if index is None:
        return found.decode
    (entry, budget), old = part.entries[index + 1], part.accounts[0]
    try:
        cell = account(
            {**entry, "format": name},
            old.shape,
            prompt=old.prompt,
            new=old.new,
            element=old.element,
            **budget,
        )
    except UserError:
        # the method has a format of its own
        return found.decode
    return memory([old, cell], cfg.model.prefill_chunk).decode
