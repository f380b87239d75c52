"""Times of one method at a time: compression and decode steps over batch and length."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.config.errors import UserError
from kvbench.engine.attention import register_attention
from kvbench.engine.compress import RowSpan, build_batches
from kvbench.engine.decode import measure_resident, read_bytes
from kvbench.engine.lanes import BatchCache
from kvbench.engine.prefill import Snapshot, prefill_for
from kvbench.experiments.accuracy.run import make_renderer, split_prompt, write_plan
from kvbench.methods import Resolved, Shape
from kvbench.models.load import LoadedModel, load_model
from kvbench.runs import provenance
from kvbench.runs.config import RunConfig, resolved_yaml
from kvbench.runs.fields import checked
from kvbench.runs.plan import Cell, Group, digest, make_plan, stored_id
from kvbench.runs.progress import ProgressFactory
from kvbench.runs.record import group_fields, method_fields
from kvbench.runs.store import Record, Store
from kvbench.tasks import Prompt

#: tokens of a prefill before the one that is timed
WARM_UP = 256


def run_efficiency(cfg: RunConfig, progress: ProgressFactory) -> None:
    """Measure every method, budget, length and batch that is not in the run's folder yet.

    The first sample of each task and length gives the prompt; a batch is that many rows with caches of their
    own.

    Raises:
        UserError: something that the user can mend.
    """
    loaded = load_model(cfg.model, register_attention())
    renderer = make_renderer(cfg, loaded)
    groups = [g for g in make_plan(cfg, loaded, renderer) if g.index == 0]
    told = {c.label for g in groups for c in g.cells if "answer" in c.method.needs}
    if told:
        raise UserError(
            f"method: {', '.join(sorted(told))} needs to be told the answer; no server can do that"
        )
    where = {"device": provenance.device_name(loaded.device), "steps": cfg.efficiency.steps}
    store = Store(cfg.run_dir)
    done = store.done()
    work = [
        (g, [(c, b, stored_id(_ids(c, b, where), done)) for c in g.cells for b in cfg.efficiency.batch])
        for g in groups
    ]
    store.write_config(resolved_yaml(cfg))
    write_plan(store, [(g.task.label, c.label, name) for g, cells in work for c, _, name in cells])
    pending = [(g, [item for item in cells if item[2] not in done]) for g, cells in work]
    pending = [(g, cells) for g, cells in pending if cells]
    with progress(sum(len(cells) for _, cells in pending), len(pending)) as shown:
        for group, cells in pending:
            shown.start_prompt(group.name)
            prompt = renderer.render(group.sample)
            compressed, question, last = split_prompt(prompt, group.protocol, cfg.decode.first_token)
            if question:
                raise UserError("protocol: efficiency runs are query_aware only")
            snapshot: Snapshot | None = None
            needs = None
            for cell, batch, name in sorted(cells, key=lambda item: sorted(item[0].method.needs)):
                # a prefill for each set of needs: its time is that of the methods that have them
                if snapshot is None or cell.method.needs != needs:
                    needs, snapshot = cell.method.needs, None
                    alike = [c.method for c, _, _ in cells if c.method.needs == needs]
                    lengths = (WARM_UP, None) if loaded.device.type == "cuda" else (None,)
                    for tokens in lengths:  # what starts or is compiled at its first use is not timed
                        snapshot = prefill_for(
                            alike, loaded.model, loaded.tokenizer, compressed[:tokens], cfg.model.prefill_chunk,
                            cfg.model.attention,
                        )  # fmt: skip
                assert snapshot is not None
                shown.stage(f"{cell.label} {cell.budget.label() if cell.budget else ''} batch {batch}")
                try:
                    timed = _measure(
                        cfg, loaded.model, snapshot, last, _resolve(group, snapshot, cell), batch
                    )
                except torch.OutOfMemoryError:
                    warnings.warn(
                        f"{group.name}: {cell.label} at batch {batch} does not fit in memory, left out",
                        stacklevel=2,
                    )
                else:
                    store.append(
                        checked(
                            {**_fields(cfg, loaded, group, prompt, snapshot, cell), "cell": name, **timed}
                        )
                    )
                shown.cells_done(1)


def _ids(cell: Cell, batch: int, where: Record) -> list[str]:
    return [digest({"cell": name, "timing": "isolated", "batch": batch, **where}) for name in cell.ids]


def _resolve(group: Group, snapshot: Snapshot, cell: Cell) -> Resolved:
    layer = snapshot.layers[0]
    shape = Shape(snapshot.length, group.sample.max_new_tokens, layer.num_layers, layer.k_HTD.shape[-1])
    return cell.method.resolve(shape, cell.budget)


def _fields(
    cfg: RunConfig, loaded: LoadedModel, group: Group, prompt: Prompt, snapshot: Snapshot, cell: Cell
) -> Record:
    return {
        **group_fields(cfg, loaded, group, prompt, snapshot),
        "method": cell.label,
        **method_fields(cell, _resolve(group, snapshot, cell)),
        "score": None,
        "kl_to_dense": None,
        "output_ids": None,
        "timing": "isolated",
    }


@torch.inference_mode()
def _measure(
    cfg: RunConfig, model: PreTrainedModel, snapshot: Snapshot, last: int, cell: Resolved, batch: int
) -> Record:
    """Compression once, then decode steps one by one."""
    options = cfg.efficiency
    clock = CudaClock(model.device) if model.device.type == "cuda" else CpuClock()
    provenance.reset_peak(model.device)
    room = options.warmup + options.steps + Step.CAPTURE_STEPS
    span = RowSpan(0, slice(0, batch))

    def compress() -> BatchCache:
        (cache,) = build_batches(snapshot, [cell], [span], 1, batch, room, with_dense=False, share=False)
        clock.wait()
        return cache

    if model.device.type == "cuda":
        compress()  # kernels are compiled at their first use
    started = time.perf_counter()
    cache = compress()
    compress_seconds = time.perf_counter() - started
    resident = measure_resident(cache, 0)
    step = Step(model, cache, last, batch)
    for _ in range(options.warmup):
        step.eager()
    read, read_bf16 = read_bytes(cache, 0, options.warmup) if options.warmup else (None, None)
    cache.stop_counting()
    recorded = model.device.type == "cuda" and cache.recordable
    run = step.captured() if recorded else step.eager
    times = [clock.time(run) for _ in range(options.steps)]
    median = statistics.median(times)
    return {
        "batch": batch,
        "kept_tokens": resident.kept,
        "bytes_resident": resident.bytes,
        "bytes_resident_bf16": resident.bf16,
        "bytes_read_per_step": read,
        "bytes_read_per_step_bf16": read_bf16,
        "compress_s": compress_seconds,
        "decode_ms_per_token": median,
        "decode_ms_p20": _quantile(times, 0.2),
        "decode_ms_p80": _quantile(times, 0.8),
        "tokens_per_s": batch * 1000 / median,
        "step": "graph" if recorded else "eager",
        "peak_bytes": provenance.peak_bytes(model.device),
    }


def _quantile(values: Sequence[float], q: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))


class Step:
    """One greedy decode step on static tensors, so that a CUDA graph can hold it.

    Args:
        model: loaded with the attention hook.
        cache: one batch.
        last: the token that every row is fed first.
        rows: rows of the batch.
    """

    #: steps run on a side stream before the capture, as CUDA graphs require, and the captured one
    CAPTURE_STEPS = 4

    def __init__(self, model: PreTrainedModel, cache: BatchCache, last: int, rows: int) -> None:
        self.model, self.cache = model, cache
        self.tokens = torch.full((rows, 1), last, device=model.device)
        self.position = torch.full((rows, 1), cache.get_seq_length(), device=model.device)

    def eager(self) -> None:
        """Feed each row's token, and put the next ones in their place."""
        logits: Tensor = self.model(
            input_ids=self.tokens, position_ids=self.position, past_key_values=self.cache, use_cache=True
        ).logits
        self.tokens.copy_(logits[:, -1:].argmax(-1))
        self.position.add_(1)

    def captured(self) -> Callable[[], None]:
        """The step as a CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.CAPTURE_STEPS - 1):
                self.eager()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.eager()
        return graph.replay


class CpuClock:
    """Wall-clock milliseconds of one call."""

    def wait(self) -> None:
        """Nothing runs behind the caller's back."""

    def time(self, run: Callable[[], None]) -> float:
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)


class CudaClock:
    """Milliseconds of one call between CUDA events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start, self.stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def time(self, run: Callable[[], None]) -> float:
        self.start.record()
        run()
        self.stop.record()
        self.stop.synchronize()
        return self.start.elapsed_time(self.stop)
