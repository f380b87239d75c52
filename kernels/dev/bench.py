"""Times every operation on the available device, after checking its numbers.

    python -m kvbench.kernels.dev.bench [--lengths 4096,32768] [--budgets 256,1024] [--dtype bf16] [--limit SECONDS]
        [--csv FILE]

Shapes are those of one layer of Llama-3.1-8B at batch 1; caches are cold before every call. `ratio_to_dense` is the
time of the fastest dense form of torch (or flash-attn, where installed) over the row's time. Scaled dot-product
attention gets the group as query rows: `enable_gqa` alone is slower and would flatter every sparse form.
"""

import argparse
import datetime
import importlib.util
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from kvbench.config.files import write
from kvbench.kernels import forms, window_scores
from kvbench.kernels.clock import ColdClock
from kvbench.kernels.hsa_decode import hsa_decode
from kvbench.kernels.hsa_scores import hsa_scores, hsa_select
from kvbench.kernels.hsa_scores import naive as hsa_naive
from kvbench.kernels.page_bounds import form as bounds_form
from kvbench.kernels.page_bounds import page_bounds
from kvbench.kernels.pool import chunk_sums, pool, sums_form
from kvbench.kernels.pool import portable as pool_reference
from kvbench.kernels.quest_scores import form as quest_form
from kvbench.kernels.quest_scores import quest_scores
from kvbench.kernels.sparse_decode import form, sparse_decode
from kvbench.kernels.sparse_decode import naive as decode_naive
from kvbench.kernels.top_k import select_tokens
from kvbench.kernels.window_scores import naive as window_naive

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEADS, GROUP, DIM, WINDOW = 8, 4, 128, 32
PAGE = 16
# SnapKV's pooling as RocketKV sets it, and ChunkKV's chunk
POOL, CHUNK = 63, 10
# RocketKV's second stage for some prompts and budgets: slots after the first stage, page, channels, tokens attended.
# RocketKV, arXiv 2502.14051v3, section 3.6, for a head dimension of 128
ROCKETKV = {
    (4096, 256): (1024, 2, 64, 128),
    (32768, 256): (1618, 3, 60, 128),
    (32768, 1024): (5792, 3, 67, 512),
    (32768, 4096): (14868, 2, 70, 2048),
    (98304, 256): (1394, 3, 70, 128),
    (131072, 1024): (6472, 3, 62, 512),
}


@dataclass(frozen=True)
class Case:
    """One call to time.

    Attributes:
        operation: name of the operation.
        form: form that it runs in.
        budget: tokens or pages read, "" for all.
        bytes: minimum of bytes to read.
        call: runs it.
        error: largest error relative to the largest number of the fp64 reference; None for a part of another case.
        dense: whether it is one of the dense baselines.
    """

    operation: str
    form: str
    budget: str
    bytes: int
    call: Callable[[], object]
    error: Callable[[], float] | None = None
    dense: bool = False


class Inputs:
    """Cache and query of one layer, and the forms that run on its device."""

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(length)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(dtype)

        self.generator, self.length, self.device, self.scaling = generator, length, device, DIM**-0.5
        self.q, self.k, self.v = (draw(1, HEADS, n, DIM) for n in (GROUP, length, length))
        self.k_tail, self.v_tail = draw(1, HEADS, 1, DIM), draw(1, HEADS, 1, DIM)
        self.tail = torch.zeros((), dtype=torch.long, device=device)
        self.window_q = draw(HEADS * GROUP, WINDOW, DIM)
        self.element = self.k.element_size()

    def kv_bytes(self, slots: int) -> int:
        return 2 * HEADS * slots * DIM * self.element

    def slots(self, count: int, run: int) -> Tensor:
        """Random runs of slots, ascending, for each KV head: int32 `[1, H, count]`."""
        starts = torch.rand(HEADS, self.length // run, generator=self.generator, device=self.device)
        starts = starts.argsort(-1)[:, : count // run].sort(-1).values * run
        within = torch.arange(run, device=self.device)
        return (starts[..., None] + within).flatten(1).int()[None].contiguous()

    def forms(self) -> list[str]:
        """The portable form and the device's own."""
        best = form(self.device, self.k.dtype, GROUP, DIM)
        return ["portable"] if best == "portable" else ["portable", best]

    def decode(self, name: str, k: Tensor, v: Tensor, index: Tensor | None) -> Tensor:
        """Decode attention in a form."""
        with forms.using(name):
            return sparse_decode(self.q, k, v, self.k_tail, self.v_tail, self.tail, self.scaling, index)[0]


def parts(length: int, budgets: list[int]) -> Iterator[tuple[str, str, Callable[[Inputs], Iterator[Case]]]]:
    """Operation, budget and a generator of cases for everything timed at one length."""
    yield "dense decode", "", _dense
    for tokens in budgets:
        if tokens < length:
            pages = tokens // PAGE
            yield "selected decode", f"{tokens} tokens", partial(_selected, tokens=tokens, run=1)
            yield "selected decode", f"{pages} pages of {PAGE}", partial(_selected, tokens=tokens, run=PAGE)
        if (length, tokens) in ROCKETKV:
            yield "rocketkv step", f"t = {tokens}", partial(_rocketkv, traffic=tokens)
    yield "scores of a prompt", "", _scores


def _attention_error(x: Inputs, out: Tensor, k: Tensor, v: Tensor, index: Tensor | None) -> float:
    """Error of the first KV head."""
    keys, values = (kv[0, 0] if index is None else kv[0, 0, index[0, 0].long()] for kv in (k, v))
    return _error(out[0, 0], decode_naive.of_head(x.q[0, 0], keys, values, x.scaling)[0])


def _error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).abs().max() / expected.abs().max())


def _dense(x: Inputs) -> Iterator[Case]:
    def sdpa() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x.q, x.k, x.v, scale=x.scaling)

    calls: dict[str, Callable[[], Tensor]] = {"sdpa, group as rows": sdpa}
    if x.device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_with_kvcache  # type: ignore[import-not-found]

        # its layout is [B, T, H, D]
        q = x.q.flatten(1, 2)[:, None]
        k, v = (kv.transpose(1, 2).contiguous() for kv in (x.k, x.v))
        calls["flash-attn"] = lambda: flash_attn_with_kvcache(q, k, v, softmax_scale=x.scaling).view_as(x.q)
    calls |= {name: lambda name=name: x.decode(name, x.k, x.v, None) for name in x.forms()}
    for name, call in calls.items():
        baseline = name not in ("compiled", "triton")
        yield Case(
            "dense decode", name, "", x.kv_bytes(x.length), call,
            lambda call=call: _attention_error(x, call(), x.k, x.v, None), baseline,
        )  # fmt: skip


def _selected(x: Inputs, tokens: int, run: int) -> Iterator[Case]:
    index = x.slots(tokens, run)
    budget = f"{tokens} tokens" if run == 1 else f"{tokens // run} pages of {run}"
    for name in x.forms():

        def call(name=name) -> Tensor:
            return x.decode(name, x.k, x.v, index)

        yield Case(
            "selected decode", name, budget, x.kv_bytes(tokens), call,
            lambda call=call: _attention_error(x, call(), x.k, x.v, index),
        )  # fmt: skip


def _rocketkv(x: Inputs, traffic: int) -> Iterator[Case]:
    """One decode step of RocketKV on what its first stage left, whole and in parts."""
    kept, page, channels, tokens = ROCKETKV[x.length, traffic]
    k, v = (kv[:, :, :kept].contiguous() for kv in (x.k, x.v))
    low, high = page_bounds(k, page, -(-kept // page))
    edges = torch.cat([low, high], dim=-1).transpose(-1, -2).contiguous()
    length = torch.tensor(kept, device=x.device)
    score_bytes = HEADS * edges.shape[-1] * channels * x.element
    budget = f"t = {traffic}"
    for name in x.forms():

        def within(operation, *args, name=name):
            with forms.using(name):
                return operation(*args)

        def step(within=within) -> tuple[Tensor, Tensor, Tensor]:
            return within(
                hsa_decode, x.q, k, v, x.k_tail, x.v_tail, x.tail, edges, channels, page, tokens, x.scaling
            )

        def score(within=within) -> Tensor:
            return within(hsa_scores, x.q, edges, channels, page, length)

        def score_error(score=score) -> float:
            expected = hsa_naive.of_keys(x.q[0, 0].cpu(), k[0, 0].cpu(), page, channels)
            return _error(score()[0, 0].repeat_interleave(page)[:kept].cpu(), expected)

        scores, chosen = score(), step()[2]
        yield Case(
            "rocketkv step", name, budget, score_bytes + x.kv_bytes(tokens), step,
            lambda step=step, chosen=chosen: _attention_error(x, step()[0], k, v, chosen),
        )  # fmt: skip
        yield Case("rocketkv step: hsa_scores", name, budget, score_bytes, score, score_error)
        yield Case(
            "rocketkv step: select_tokens", name, budget, scores.numel() * 4,
            lambda within=within, scores=scores: within(select_tokens, scores, tokens, page, length),
        )  # fmt: skip
        yield Case(
            "rocketkv step: hsa_select", name, budget, score_bytes,
            lambda within=within: within(hsa_select, x.q, edges, channels, page, length, tokens),
        )  # fmt: skip
        yield Case(
            "rocketkv step: sparse_decode", name, budget, x.kv_bytes(tokens),
            lambda name=name, chosen=chosen: x.decode(name, k, v, chosen),
            lambda name=name, chosen=chosen: _attention_error(x, x.decode(name, k, v, chosen), k, v, chosen),
        )  # fmt: skip


def _scores(x: Inputs) -> Iterator[Case]:
    """Operations that run once per prompt, and Quest's scores."""
    pages = x.length // PAGE
    low, high = page_bounds(x.k, PAGE, pages)
    half = x.kv_bytes(x.length) // 2
    expected = window_naive.window_scores(x.window_q[:GROUP].cpu(), x.k[0, :1].cpu(), x.scaling)
    scores = torch.rand(HEADS * GROUP, x.length, generator=x.generator, device=x.device)
    pooled = pool_reference.pool(scores.double(), POOL, "max", GROUP)
    calls: list[tuple[str, str, int, Callable[[], object], forms.Rule]] = [
        ("page_bounds", f"pages of {PAGE}", half, lambda: page_bounds(x.k, PAGE, pages), bounds_form),
        (
            "quest_scores",
            f"pages of {PAGE}",
            2 * half // PAGE,
            lambda: quest_scores(x.q, low, high),
            quest_form,
        ),
        (
            "chunk_sums",
            f"chunks of {CHUNK}",
            scores.numel() * 4,
            lambda: chunk_sums(scores, CHUNK),
            sums_form,
        ),
    ]
    for name in x.forms():

        def score(name=name) -> Tensor:
            with forms.using(name):
                return window_scores.window_scores(x.window_q, x.k[0], x.scaling)

        yield Case(
            "window_scores", name, f"window {WINDOW}", 2 * half, score,
            lambda score=score: _error(score()[:GROUP].cpu(), expected),
        )  # fmt: skip

        def pooling(name=name) -> Tensor:
            with forms.using(name):
                return pool(scores, POOL, "max", GROUP)

        yield Case(
            "pool", name, f"max of {POOL}, groups of {GROUP}", scores.numel() * 4, pooling,
            lambda pooling=pooling: _error(pooling(), pooled),
        )  # fmt: skip
        for operation, budget, size, call, rule in calls:
            with forms.using(name):
                if rule(x.device, x.k.dtype) != name:
                    continue

            def run(name=name, call=call) -> object:
                with forms.using(name):
                    return call()

            yield Case(operation, name, budget, size, run)


@torch.inference_mode()
def run(
    lengths: list[int], budgets: list[int], dtype: str, repeats: int, limit: float = math.inf
) -> Iterator[dict[str, Any]]:
    """Yields a row per case as soon as it is timed, and one for each part that the time limit leaves out.

    Args:
        lengths: tokens in the cache, the most important first.
        budgets: tokens read.
        dtype: of keys and values.
        repeats: timed calls.
        limit: seconds after which no further case is started; the dense forms of the first length always run.

    Raises:
        RuntimeError: a form gives wrong numbers.
    """
    device, begun = torch.device("cuda" if torch.cuda.is_available() else "cpu"), time.monotonic()
    clock = ColdClock(device, repeats)
    # sums of a few thousand products, rounded as torch does
    tolerance = 4 * torch.finfo(DTYPES[dtype]).eps if dtype != "fp32" else 1e-4
    about = {
        "device": _device_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    for length in lengths:
        inputs, dense = None, []
        for operation, budget, make in parts(length, budgets):
            if time.monotonic() - begun > limit and (dense or length != lengths[0]):
                left = {"operation": operation, "length": length, "budget": budget, "dtype": dtype}
                yield left | about | {"note": f"left out: time limit of {limit:g} s"}
                continue
            if inputs is None:
                inputs = Inputs(length, DTYPES[dtype], device)
            for case in make(inputs):
                if case.error is not None and not (error := case.error()) <= tolerance:
                    raise RuntimeError(f"{case.operation}, {case.form}, {length} tokens: error {error:.1e}")
                (p20, median, p80), bandwidth = clock.percentiles_and_bandwidth(case.call)
                if case.dense:
                    dense.append((median, case.form))
                best, baseline = min(dense)
                yield {
                    "operation": case.operation, "form": case.form, "length": length, "budget": case.budget,
                    "dtype": dtype, "median_ms": median, "p20_ms": p20, "p80_ms": p80, "bytes": case.bytes,
                    "gb_per_s": case.bytes / median / 1e6,
                    "percent_of_read": case.bytes / median / 1e4 / bandwidth,
                    "ratio_to_dense": best / median, "dense_baseline": baseline, "read_gb_per_s": bandwidth,
                } | about  # fmt: skip


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m kvbench.kernels.dev.bench", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--lengths", default="4096,32768")
    parser.add_argument("--budgets", default="256,1024")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--limit", type=float, default=math.inf, help="seconds after which no case is started"
    )
    parser.add_argument("--csv", type=Path, help="file to write the table to")
    options = parser.parse_args(arguments)
    lengths, budgets = ([int(n) for n in text.split(",")] for text in (options.lengths, options.budgets))
    rows: list[dict[str, Any]] = []
    try:
        for row in run(lengths, budgets, options.dtype, options.repeats, options.limit):
            rows.append(row)
    except RuntimeError as problem:
        sys.exit(str(problem))
    finally:
        # finished rows are kept, whatever ends the run
        if rows:
            _report(pd.DataFrame(rows), options.csv)


def _report(frame: pd.DataFrame, csv: Path | None) -> None:
    if csv:
        write(csv, frame.to_csv(index=False, float_format="%.6g"))
    columns = ["operation", "form", "length", "budget", "median_ms", "p20_ms", "p80_ms", "percent_of_read"]
    print(
        f"{frame['device'][0]}, {frame['threads'][0]} threads, reads {frame['read_gb_per_s'].median():.1f} GB/s"
    )
    timed = frame[frame["median_ms"].notna()]
    print(timed[[*columns, "ratio_to_dense"]].round(3).to_string(index=False))
    for _, row in frame[frame["median_ms"].isna()].iterrows():
        print(f"{row['note']}: {row['operation']} {row['budget']}".rstrip() + f", {row['length']} tokens")


if __name__ == "__main__":
    main()
