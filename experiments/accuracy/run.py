"""Runs what a configuration asks for and the store does not have yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from kvbench.config.errors import UserError
from kvbench.engine.attention import register_attention
from kvbench.engine.decode import Decoded, DecodeOptions, decode_cells
from kvbench.engine.decode import Group as DecodedGroup
from kvbench.engine.dense_answer import decode_dense_answer
from kvbench.engine.prefill import Snapshot, prefill_for, sliding_window
from kvbench.methods import Resolved, Shape
from kvbench.models.load import LoadedModel, load_model
from kvbench.runs import provenance
from kvbench.runs.config import RunConfig, resolved_yaml
from kvbench.runs.fields import checked
from kvbench.runs.plan import Cell, Group, make_plan, with_stored_ids
from kvbench.runs.progress import ProgressDisplay, ProgressFactory
from kvbench.runs.record import group_fields, method_fields
from kvbench.runs.rerun import Rerun
from kvbench.runs.store import Record, Store
from kvbench.tasks import Prompt, Renderer


def run_accuracy(cfg: RunConfig, progress: ProgressFactory) -> None:
    """Score every cell that is not in the run's folder yet.

    Args:
        cfg: the configuration.
        progress: `kvbench.runs.progress.Progress` or a class with its methods.

    Raises:
        UserError: something that the user can mend, as a GPU's memory that is too small.
        AuditError: a method's cache is not what it promised.
    """
    loaded = load_model(cfg.model, register_attention())
    renderer = make_renderer(cfg, loaded)
    store = Store(cfg.run_dir)
    done = store.done()
    groups = with_stored_ids(make_plan(cfg, loaded, renderer), done)
    store.write_config(resolved_yaml(cfg))
    write_plan(store, [(g.task.label, cell.label, cell.id) for g in groups for cell in g.cells])
    rerun = Rerun(cfg)
    pending = [(group, [cell for cell in group.cells if cell.id not in done]) for group in groups]
    pending = [(group, cells) for group, cells in pending if cells]
    with progress(sum(len(cells) for _, cells in pending), len(pending)) as shown:
        for group, cells in pending:
            shown.start_prompt(group.name)
            try:
                records = _run_group(cfg, loaded, renderer, group, cells, shown)
            except torch.OutOfMemoryError:
                raise UserError(
                    f"decode.block_rows: {group.name} does not fit in memory with {cfg.decode.block_rows}; give less, "
                    "or a smaller model.prefill_chunk, fewer methods or budgets at once"
                ) from None
            records = [checked({**record, "command": rerun.command(record)}) for record in records]
            store.extend(records)
            shown.cells_done(len(records))


def make_renderer(cfg: RunConfig, loaded: LoadedModel) -> Renderer:
    """Makes prompts for the model, no longer, with the answer, than its positions and its sliding window."""
    limit = loaded.model.config.get_text_config().max_position_embeddings
    if (sliding := sliding_window(loaded.model)) is not None:
        limit = min(limit, sliding)
    return Renderer(loaded.tokenizer, cfg.model.chat_template, cfg.model.system, limit)


def split_prompt(prompt: Prompt, protocol: str, first_token: str) -> tuple[list[int], list[int], int]:
    """What is prefilled and compressed, what is fed to every row, and the last prompt token.

    Returns:
        (compressed, question, last): `compressed + question + [last]` is the prompt, except for a query-aware
        prompt with `first_token=dense`, where the last token is compressed too. In a later turn of a
        conversation the first turn's prompt is compressed, as it was then.
    """
    if prompt.first_end is not None:
        end = prompt.first_end - (first_token == "compressed")
        return prompt.ids[:end], prompt.ids[end:-1], prompt.ids[-1]
    if protocol == "query_agnostic":
        end = min(prompt.context_end, len(prompt.ids) - 1)
        return prompt.ids[:end], prompt.ids[end:-1], prompt.ids[-1]
    if first_token == "dense":
        return prompt.ids, [], prompt.ids[-1]
    return prompt.ids[:-1], [], prompt.ids[-1]


def _run_group(
    cfg: RunConfig,
    loaded: LoadedModel,
    renderer: Renderer,
    group: Group,
    cells: Sequence[Cell],
    shown: ProgressDisplay,
) -> list[Record]:
    prompt = renderer.render(group.sample)
    if prompt.first_end is None:
        return _run_part(cfg, loaded, group, prompt, None, cells, shown)
    filtering = [cell for cell in cells if cell.method.on_turn == "filter"]
    keeping = [cell for cell in cells if cell not in filtering]
    first = len(split_prompt(prompt, group.protocol, cfg.decode.first_token)[0])
    # who filters anew sees the conversation so far as one prompt
    parts = ((prompt, keeping), (replace(prompt, first_end=None), filtering))
    return [
        record
        for asked, part in parts
        if part
        for record in _run_part(cfg, loaded, group, asked, first, part, shown)
    ]


def _run_part(
    cfg: RunConfig, loaded: LoadedModel, group: Group, prompt: Prompt, first_turn: int | None,
    cells: Sequence[Cell], shown: ProgressDisplay,
) -> list[Record]:  # fmt: skip
    """Cells that compress the same tokens; in a later turn, budgets are those of the first turn's length.

    A budget that covers the first turn is that of the conversation so far, which it may not cover.
    """
    provenance.reset_peak(loaded.device)
    compressed, question, last = split_prompt(prompt, group.protocol, cfg.decode.first_token)
    shown.stage("prefill")
    snapshot = prefill_for(
        [cell.method for cell in cells], loaded.model, loaded.tokenizer, compressed, cfg.model.prefill_chunk,
        cfg.model.attention,
    )  # fmt: skip
    options_ = DecodeOptions(
        max_new_tokens=group.sample.max_new_tokens,
        eos=frozenset() if cfg.decode.ignore_eos else loaded.eos_ids,
        batch_rows=cfg.decode.block_rows,
        kl=cfg.kl,
        # only a query-aware prefill ends with the prompt
        first_token=cfg.decode.first_token
        if group.protocol == "query_aware" and not question
        else "compressed",
    )
    if any("answer" in cell.method.needs for cell in cells):
        decode_dense_answer(loaded.model, snapshot, question, last, options_)
    shown.stage("compress and decode")
    layer = snapshot.layers[0]
    room = group.sample.max_new_tokens + (len(question) if first_turn is None else 0)
    shape = Shape(first_turn or snapshot.length, room, layer.num_layers, layer.k_HTD.shape[-1])
    resolved = [cell.method.resolve(shape, cell.budget) for cell in cells]
    if first_turn is not None:
        whole = replace(shape, compressed=snapshot.length, max_new_tokens=room + len(question))
        resolved = [
            cell.method.resolve(whole, cell.budget) if r.covers_prompt else r
            for cell, r in zip(cells, resolved, strict=True)
        ]
    own = [r for r in resolved if not r.dense]
    result = decode_cells(loaded.model, snapshot, question, last, own, options_)
    rows = iter(result.cells)
    decoded = [result.dense if r.dense else next(rows) for r in resolved]
    shared = _shared_fields(cfg, loaded, group, prompt, snapshot, result, len(cells))
    return [
        {**shared, **_cell_fields(cfg, cell, r, d), **_score_fields(loaded, group, d)}
        for cell, r, d in zip(cells, resolved, decoded, strict=True)
    ]


def _shared_fields(
    cfg: RunConfig,
    loaded: LoadedModel,
    group: Group,
    prompt: Prompt,
    snapshot: Snapshot,
    result: DecodedGroup,
    cells: int,
) -> Record:
    """Fields that are equal for all cells of a prompt; `prefill_s` is the prompt's, other times are shared out."""
    return {
        **group_fields(cfg, loaded, group, prompt, snapshot),
        "compressed_tokens": snapshot.length,
        "gold": list(group.sample.gold),
        "meta": dict(group.sample.meta),
        "compress_s": result.compress_seconds / cells,
        "decode_ms_per_token": 1000 * result.decode_seconds / max(1, result.steps) / cells,
        "timing": "amortised",
        "peak_bytes": provenance.peak_bytes(loaded.device),
    }


def _cell_fields(cfg: RunConfig, cell: Cell, resolved: Resolved, out: Decoded) -> Record:
    return {
        "cell": cell.id,
        "method": cell.label,
        **method_fields(cell, resolved),
        "kept_tokens": out.kept,
        "bytes_resident": out.resident,
        "bytes_resident_end": out.resident_end,
        "bytes_read_per_step": out.read,
        "bytes_resident_bf16": out.resident_bf16,
        "bytes_read_per_step_bf16": out.read_bf16,
        "kl_to_dense": 0.0 if resolved.dense and cfg.kl else out.kl,
        "kl_tokens": len(out.ids) if resolved.dense and cfg.kl else out.kl_tokens,
        "agree_top1": 1.0 if resolved.dense and cfg.kl else out.agree,
    }


def _score_fields(loaded: LoadedModel, group: Group, out: Decoded) -> Record:
    text = str(loaded.tokenizer.decode(out.ids, skip_special_tokens=True))
    return {
        "score": group.task.score(text, group.sample),
        "output": text,
        "output_ids": out.ids,
        "stop": out.stop,
    }


def write_plan(store: Store, cells: Sequence[tuple[str, str, str]]) -> None:
    """What the run will hold when it is done, for `kvbench status`: (task, method, cell id) of every cell."""
    count = Counter((task, method) for task, method, _ in cells)
    plan = {
        "cells": [name for _, _, name in cells],
        "totals": [{"task": task, "method": method, "cells": n} for (task, method), n in count.items()],
    }
    store.write_plan(plan)
