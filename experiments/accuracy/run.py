"""Scores the cells of a configuration that are not in the store yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from kvbench.config.errors import UserError
from kvbench.engine.decode import Decoded, DecodeOptions, decode_cells
from kvbench.engine.decode import Group as DecodedGroup
from kvbench.engine.dense_answer import decode_dense_answer
from kvbench.engine.prefill import Snapshot, prefill_for
from kvbench.engine.turns import Part, Split, prompt_parts
from kvbench.methods import Resolved, Shape
from kvbench.runs import provenance
from kvbench.runs.config import RunConfig, resolved_yaml
from kvbench.runs.context import PromptContext, RunContext
from kvbench.runs.fields import checked
from kvbench.runs.plan import Cell, Group, with_stored_ids
from kvbench.runs.progress import ProgressDisplay, ProgressFactory
from kvbench.runs.record import group_fields, method_fields
from kvbench.runs.rerun import Rerun
from kvbench.runs.store import Record, Store


def run_accuracy(cfg: RunConfig, progress: ProgressFactory) -> None:
    """Score every cell that is not in the run's folder yet.

    Args:
        cfg: the configuration.
        progress: makes the progress display.

    Raises:
        UserError: fixable by the user, e.g. not enough GPU memory.
        AuditError: a method's cache differs from what the method promises.
    """
    run = RunContext.load(cfg)
    store = Store(cfg.run_dir)
    done = store.done()
    groups = with_stored_ids(run.plan(), done)
    store.write_config(resolved_yaml(cfg))
    store.write_plan((group.task.label, cell.label, cell.id) for group in groups for cell in group.cells)
    pending = list(_pending(groups, done))
    rerun = Rerun(cfg)
    with progress(sum(len(group.cells) for group in pending), len(pending)) as display:
        for group in pending:
            display.start_prompt(group.name)
            records = _score_prompt(PromptContext.render(run, group), display)
            store.extend([checked({**record, "command": rerun.command(record)}) for record in records])
            display.cells_done(len(records))


def _pending(groups: Sequence[Group], done: set[str]) -> Iterator[Group]:
    """Groups with the cells that are not done, without those that have none."""
    for group in groups:
        cells = tuple(cell for cell in group.cells if cell.id not in done)
        if cells:
            yield replace(group, cells=cells)


def _score_prompt(at: PromptContext, display: ProgressDisplay) -> list[Record]:
    prompt, group, decode = at.prompt, at.group, at.run.cfg.decode
    parts = prompt_parts(
        prompt.ids, prompt.context_end, group.protocol, decode.first_token, prompt.first_end,
        [cell.method for cell in group.cells],
    )  # fmt: skip
    try:
        return [record for part in parts for record in _score_part(at, part, display)]
    except torch.OutOfMemoryError:
        raise UserError(
            f"decode.block_rows: {group.name} does not fit in memory with {decode.block_rows}; give less, "
            "or a smaller model.prefill_chunk, fewer methods or budgets at once"
        ) from None


def _score_part(at: PromptContext, part: Part, display: ProgressDisplay) -> list[Record]:
    """Prefill once, then compress, decode and score the cells together."""
    loaded = at.run.loaded
    cells = [at.group.cells[index] for index in part.cells]
    provenance.reset_peak(loaded.device)
    display.stage("prefill")
    snapshot = _prefill(at, part.split, cells)
    display.stage("compress and decode")
    layer = snapshot.layers[0]
    shape = Shape(snapshot.length, at.group.sample.max_new_tokens, layer.num_layers, layer.k_HTD.shape[-1])
    resolved = [part.resolve(cell.method, cell.budget, shape) for cell in cells]
    result = decode_cells(
        loaded.model, snapshot, part.split.question, part.split.last, [r for r in resolved if not r.dense],
        _decode_options(at, part.split),
    )  # fmt: skip
    rows = iter(result.cells)
    decoded = [result.dense if r.dense else next(rows) for r in resolved]
    shared = _shared_fields(at, snapshot, result, len(cells))
    return [
        {**shared, **_cell_fields(at, cell, r, d), **_score_fields(at, d)}
        for cell, r, d in zip(cells, resolved, decoded, strict=True)
    ]


def _prefill(at: PromptContext, split: Split, cells: Sequence[Cell]) -> Snapshot:
    """The snapshot with everything that the cells' methods need."""
    model, loaded = at.run.cfg.model, at.run.loaded
    snapshot = prefill_for(
        [cell.method for cell in cells], loaded.model, loaded.tokenizer, split.compressed, model.prefill_chunk,
        model.attention,
    )  # fmt: skip
    if any("answer" in cell.method.needs for cell in cells):
        options = _decode_options(at, split)
        decode_dense_answer(loaded.model, snapshot, split.question, split.last, options)
    return snapshot


def _decode_options(at: PromptContext, split: Split) -> DecodeOptions:
    cfg = at.run.cfg
    # only a query-aware prefill ends with the prompt
    whole_prompt = at.group.protocol == "query_aware" and not split.question
    return DecodeOptions(
        max_new_tokens=at.group.sample.max_new_tokens,
        eos=frozenset() if cfg.decode.ignore_eos else at.run.loaded.eos_ids,
        batch_rows=cfg.decode.block_rows,
        kl=cfg.kl,
        first_token=cfg.decode.first_token if whole_prompt else "compressed",
    )


def _shared_fields(at: PromptContext, snapshot: Snapshot, result: DecodedGroup, cells: int) -> Record:
    """Fields that are equal for all cells of a prompt; `prefill_s` is the prompt's, other times are per cell."""
    return {
        **group_fields(at, snapshot),
        "compressed_tokens": snapshot.length,
        "gold": list(at.group.sample.gold),
        "meta": dict(at.group.sample.meta),
        "compress_s": result.compress_seconds / cells,
        "decode_ms_per_token": 1000 * result.decode_seconds / max(1, result.steps) / cells,
        "timing": "amortised",
        "peak_bytes": provenance.peak_bytes(at.run.loaded.device),
    }


def _cell_fields(at: PromptContext, cell: Cell, resolved: Resolved, out: Decoded) -> Record:
    dense_kl = resolved.dense and at.run.cfg.kl
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
        "kl_to_dense": 0.0 if dense_kl else out.kl,
        "kl_tokens": len(out.ids) if dense_kl else out.kl_tokens,
        "agree_top1": 1.0 if dense_kl else out.agree,
    }


def _score_fields(at: PromptContext, out: Decoded) -> Record:
    text = str(at.run.loaded.tokenizer.decode(out.ids, skip_special_tokens=True))
    return {
        "score": at.group.task.score(text, at.group.sample),
        "output": text,
        "output_ids": out.ids,
        "stop": out.stop,
    }
