"""Scores the cells of a configuration that are not in the store yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from kvbench.config.errors import UserError
from kvbench.engine.apart import decode_apart
from kvbench.engine.continuations import judge_cells
from kvbench.engine.decode import Decoded, DecodeOptions
from kvbench.engine.decode import Group as DecodedGroup
from kvbench.engine.dense_answer import decode_dense_answer
from kvbench.engine.draw import Draw
from kvbench.engine.failures import DenseError, Failure, device_lost
from kvbench.engine.prefill import Snapshot, prefill_for
from kvbench.engine.repeat import repeat, requests
from kvbench.engine.rope import settle_rope
from kvbench.engine.turns import Part, Split, prompt_parts
from kvbench.experiments.accuracy.prefills import Prefills
from kvbench.methods import LayerSnapshot, Resolved, Shape
from kvbench.methods.base import Native
from kvbench.runs import failures, provenance
from kvbench.runs.config import RunConfig, resolved_yaml
from kvbench.runs.context import PromptContext, RunContext
from kvbench.runs.fields import checked
from kvbench.runs.follow import Follow
from kvbench.runs.plan import Cell, Group, with_stored_ids
from kvbench.runs.progress import ProgressDisplay, ProgressFactory, nothing_to_do
from kvbench.runs.record import group_fields, method_fields
from kvbench.runs.rerun import Rerun, command
from kvbench.runs.sharing import Item, dealt, key_of, part_of
from kvbench.runs.stopping import Stop
from kvbench.runs.store import Record, Store

#: a cell's row, or why it has none
Outcome = tuple[Cell, Record | Failure]


def run_accuracy(cfg: RunConfig, progress: ProgressFactory) -> list[Record]:
    """Score every cell that is not in the run's folder yet; cells that fail are stored as failures.

    Args:
        cfg: the configuration.
        progress: makes the progress display.

    Returns:
        The failures of the run's cells, of this and earlier commands.

    Raises:
        UserError: fixable by the user, e.g. a setting that no cell can run with; dense fails on the first prompt of a
            folder without a finished cell.
    """
    with Stop(cfg.stop_seconds).installed() as stop:
        return _run(RunContext.load(cfg), progress, stop)


def _run(run: RunContext, progress: ProgressFactory, stop: Stop) -> list[Record]:
    cfg, store = run.cfg, Store(run.cfg.run_dir)
    follow = Follow(store)
    groups = with_stored_ids(run.plan(store.run_dir), follow.done | follow.failed, store.planned().cells)
    cells = [(group.task.label, cell.label, cell.id) for group in groups for cell in group.cells]
    planned = {cell for *_, cell in cells}
    store.write_config(resolved_yaml(cfg))
    store.write_plan(cells, cfg.request, command(cfg))
    skipped = failures.to_skip(planned & follow.failed - follow.done, cfg.retry_failed)
    items = part_of([_item(run, group) for group in groups], cfg)
    untried = not planned & follow.done
    settled = follow.done | skipped
    if all(item.cells <= settled for item in items):
        nothing_to_do(len(planned), len(skipped))
    rerun, prefills = Rerun(cfg), Prefills()
    run.loaded.model.get_input_embeddings().register_forward_pre_hook(lambda *_: stop.check())
    with dealt(items, skipped, store, follow, cfg, stop, progress) as (left, display):
        for group, ids in left:
            stop.check_between()
            with stop.working():
                found, lost, tokens = _prompt(run, group, ids, store, display, rerun, untried, prefills)
            left.tell(tokens, provenance.peak_bytes(run.loaded.device))
            untried = False
            failures.warn(found)
            if lost:
                # nothing else runs in this process; the same command goes on behind these cells
                break
        else:
            stop.check()
    return failures.recorded(store, planned)


def _item(run: RunContext, group: Group) -> Item[Group]:
    key = key_of(run.loaded.fingerprint, group.prompt.hash, group.protocol)
    return Item(key, frozenset(cell.id for cell in group.cells), group, group.name)


def _prompt(
    run: RunContext, group: Group, ids: frozenset[str], store: Store, display: ProgressDisplay, rerun: Rerun,
    untried: bool, prefills: Prefills,
) -> tuple[list[Record], bool, int]:  # fmt: skip
    """Score some cells of a prompt and store them; the failures, whether the GPU is lost, and tokens that were read."""
    group = replace(group, cells=tuple(cell for cell in group.cells if cell.id in ids))
    display.start_prompt(group.name)
    at = PromptContext.render(run, group)
    lost = False
    try:
        outcomes = _score_prompt(at, display, rerun, prefills)
    except Exception as error:
        if not device_lost(error):
            raise
        lost, failure = True, Failure.of(error, "decode")
        outcomes = [(cell, failure) for cell in group.cells]
    store.extend(found for _, found in outcomes if not isinstance(found, Failure))
    failed = [
        failures.failure_record(at, cell, found, "amortised", cell.id, rerun=rerun)
        for cell, found in outcomes
        if isinstance(found, Failure)
    ]
    store.extend_failures(failed)
    display.cells_done(len(outcomes))
    if untried:
        _check_dense(at, outcomes)
    tokens = len(at.prompt.ids)
    tokens += sum(len(found["output_ids"]) for _, found in outcomes if not isinstance(found, Failure))
    return failed, lost, tokens


def _check_dense(at: PromptContext, outcomes: Sequence[Outcome]) -> None:
    """Stop after the first prompt if dense failed on it.

    Raises:
        UserError: names model, dtype and what to change.
    """
    for cell, found in outcomes:
        if cell.is_dense and isinstance(found, Failure):
            raise failures.first_prompt(at, found)


def _score_prompt(
    at: PromptContext, display: ProgressDisplay, rerun: Rerun, prefills: Prefills
) -> list[Outcome]:
    """The rows of a prompt's cells; where dense fails, all of them fail."""
    prompt, group, decode = at.prompt, at.group, at.run.cfg.decode
    parts = prompt_parts(
        prompt.ids, prompt.context_end, group.protocol, decode.first_token, prompt.first_end,
        [cell.method for cell in group.cells], prompt.turn_start,
    )  # fmt: skip
    outcomes: list[Outcome] = []
    for part in parts:
        cells = [group.cells[index] for index in part.cells]
        try:
            outcomes += zip(cells, _score_part(at, part, cells, display, rerun, prefills), strict=True)
        except DenseError as error:
            failed = error.failure
            outcomes += [
                (cell, failed if cell.is_dense else failures.because_of_dense(failed)) for cell in cells
            ]
    dense = next((found for cell, found in outcomes if cell.is_dense), None)
    if isinstance(dense, Failure):
        because = failures.because_of_dense(dense)
        outcomes = [(cell, dense if cell.is_dense else because) for cell, _ in outcomes]
    return outcomes


def _score_part(
    at: PromptContext, part: Part, cells: Sequence[Cell], display: ProgressDisplay, rerun: Rerun,
    prefills: Prefills,
) -> list[Record | Failure]:  # fmt: skip
    """Prefill once, then compress, decode and score the cells together.

    Raises:
        DenseError: dense fails, at prefill or later.
        UserError: no cell can run.
    """
    loaded = at.run.loaded
    provenance.reset_peak(loaded.device)
    display.stage("prefill")
    make = partial(prefill_part, at, part, cells)
    if part.turn is None:
        used = [cell.method for cell in cells]
        snapshot = prefills.get(part.split.compressed, used, at.sample.shared, make)
        # another text may have come in between
        settle_rope(loaded.model, snapshot.length)
    else:
        # what filters in every turn has tokens of its own, between turns that share the first one's
        snapshot = make()
    display.stage("compress and decode")
    layer = snapshot.layers[0]
    shape = Shape(snapshot.length, at.sample.max_new_tokens, layer.num_layers, layer.k_HTD.shape[-1])
    resolved = [_resolved(part, cell, shape) for cell in cells]
    running = [r for r in resolved if not isinstance(r, Failure) and not r.dense]
    split = part.split
    if at.sample.continuations:
        texts = [at.run.renderer.continuation(at.prompt, text) for text in at.sample.continuations]
        result = judge_cells(loaded.model, snapshot, split.question, split.last, running, texts)
    else:
        options = _decode_options(at, split)
        result = decode_apart(loaded.model, snapshot, split.question, split.last, running, options)
    rows = iter(result.cells)
    shared = _shared_fields(at, snapshot, result, len(cells))
    found: list[Record | Failure] = []
    for cell, r in zip(cells, resolved, strict=True):
        if isinstance(r, Failure):
            found.append(r)
            continue
        out = result.dense if r.dense else next(rows)
        found.append(
            out
            if isinstance(out, Failure)
            else _record(at, cell, r, out, _with_repeat(shared, cell, layer), rerun)
        )
    return found


def _resolved(part: Part, cell: Cell, shape: Shape) -> Resolved | Failure:
    try:
        return part.resolve(cell.method, cell.budget, shape)
    except Exception as error:
        return Failure.of(error, "compress")


def _record(
    at: PromptContext, cell: Cell, resolved: Resolved, out: Decoded, shared: Record, rerun: Rerun
) -> Record | Failure:
    """A cell's row; scorers, also a user's own, may raise or return NaN."""
    try:
        record = {**shared, **_cell_fields(at, cell, resolved, out, shared["compressed_tokens"])}
        record |= _score_fields(at, out)
        return checked({**record, "command": rerun.command(record)})
    except Exception as error:
        return Failure.of(error, "score")


def prefill_part(at: PromptContext, part: Part, cells: Sequence[Cell]) -> Snapshot:
    """The snapshot with everything that the cells' methods need.

    Raises:
        DenseError: something raised.
        UserError: the model or its settings do not allow it.
    """
    model, loaded, split = at.run.cfg.model, at.run.loaded, part.split
    methods, kept = [cell.method for cell in cells], at.run.snapshots

    def prefill() -> Snapshot:
        return prefill_for(
            methods, loaded.model, loaded.tokenizer, split.compressed, model.prefill_chunk, model.attention,
            part.turn,
        )  # fmt: skip

    try:
        if kept is None:
            snapshot = prefill()
        else:
            snapshot = kept.get(split.compressed, at.group.protocol, methods, part.turn, prefill)
        if any("answer" in cell.method.needs for cell in cells):
            options = _decode_options(at, split)
            decode_dense_answer(loaded.model, snapshot, split.question, split.last, options)
        for chunk, sinks in sorted({wanted for cell in cells if (wanted := _repeats(cell)) is not None}):
            tail = partial(at.run.renderer.tail, at.sample)
            asked = requests(split.compressed, chunk, sinks, tail, loaded.tokenizer)
            repeat(loaded.model, snapshot, chunk, sinks, asked)
    except UserError:
        raise
    except Exception as error:
        if device_lost(error):
            raise
        raise DenseError(Failure.of(error, "prefill")) from None
    return snapshot


def _with_repeat(shared: Record, cell: Cell, layer: LayerSnapshot) -> Record:
    """The shared fields, with the pass that repeats the text as part of the compression of cells that need it."""
    wanted = _repeats(cell)
    extra = 0.0 if wanted is None else layer.repeats[wanted].seconds
    return {**shared, "compress_s": shared["compress_s"] + extra}


def _repeats(cell: Cell) -> tuple[int, int] | None:
    """See `Eviction.repeats`."""
    return cell.method.parts()[0].repeats


def _decode_options(at: PromptContext, split: Split) -> DecodeOptions:
    cfg, stop, sampling = at.run.cfg, at.sample.stop, at.sample.sampling
    # only a query-aware prefill ends with the prompt
    whole_prompt = at.group.protocol == "query_aware" and not split.question
    return DecodeOptions(
        max_new_tokens=at.sample.max_new_tokens,
        eos=frozenset() if cfg.decode.ignore_eos else at.run.loaded.eos_ids,
        batch_rows=cfg.decode.block_rows,
        kl=cfg.kl,
        first_token=cfg.decode.first_token if whole_prompt else "compressed",
        ends=stop.ends(at.run.loaded.tokenizer) if stop and not cfg.decode.ignore_eos else None,
        draw=Draw(sampling.temperature, sampling.top_p, sampling.key) if sampling else None,
    )


def _shared_fields(at: PromptContext, snapshot: Snapshot, result: DecodedGroup, cells: int) -> Record:
    """Fields that are equal for all cells of a prompt; `prefill_s` is the prompt's, other times are per cell."""
    return {
        **group_fields(at, snapshot),
        "compressed_tokens": snapshot.length,
        "gold": list(at.sample.gold),
        "meta": dict(at.sample.meta),
        "compress_s": result.compress_seconds / cells,
        "decode_ms_per_token": 1000 * result.decode_seconds / max(1, result.steps) / cells,
        "timing": "amortised",
        "peak_bytes": provenance.peak_bytes(at.run.loaded.device),
    }


def _cell_fields(at: PromptContext, cell: Cell, resolved: Resolved, out: Decoded, compressed: int) -> Record:
    dense_kl = resolved.dense and at.run.cfg.kl and out.log_probs is None
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
        **_held_fields(resolved, out, compressed),
        "kl_to_dense": 0.0 if dense_kl else out.kl,
        "kl_tokens": len(out.ids) if dense_kl else out.kl_tokens,
        "agree_top1": 1.0 if dense_kl else out.agree,
    }


def _held_fields(resolved: Resolved, out: Decoded, compressed: int) -> Record:
    """What was held step by step, and whether the method did anything to this prompt and answer."""
    steps = len(out.ids) if out.log_probs is None else max(map(len, out.log_probs), default=0)
    held, length = out.held, compressed + steps
    evicted = out.kept < compressed or (held is not None and held.drops > 0)
    unread = any(rule.read is not None and rule.read < length for rule in resolved.rules)
    lossy = not isinstance(resolved.format, Native)
    found: Record = {"compressed": not resolved.dense and (evicted or unread or lossy)}
    if held is None:
        return found
    return found | {
        "held_mean": held.mean,
        "held_peak": held.peak,
        "held_end": held.end,
        "held_bytes_mean": held.bytes_mean,
        "held_bytes_peak": held.bytes_peak,
        "drops": held.drops,
        "dropped_tokens": held.dropped,
        "first_drop": held.first_drop,
        "after_first_drop": held.after_first_drop,
    }


def _score_fields(at: PromptContext, out: Decoded) -> Record:
    sample, tokenizer = at.sample, at.run.loaded.tokenizer
    if out.log_probs is not None:
        text, score, by_metric = at.group.task.judged(out.log_probs, sample)
        return {"score": score, "scores": by_metric, "output": text, "output_ids": [], "stop": out.stop}
    text = sample.stop.cut(out.ids, tokenizer)
    raw = {"output_raw": str(tokenizer.decode(out.ids, skip_special_tokens=True))} if sample.stop else {}
    score, by_metric = at.group.task.scores(text, sample)
    return {
        "score": score,
        **({"scores": by_metric} if by_metric else {}),
        "output": text,
        **raw,
        "output_ids": out.ids,
        "stop": out.stop,
    }
