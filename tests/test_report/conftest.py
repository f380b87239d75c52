"""Synthetic rows as the runs store them."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvbench.runs.store import Store

Record = dict[str, Any]

# label: (eviction, selection, params, quality at a small budget)
METHODS = {
    "random": ("random", "all", {}, 0.05),
    "streaming_llm": ("streaming_llm", "all", {"sinks": 4}, 0.2),
    "snapkv": ("snapkv", "all", {"window": 32, "kernel": 7}, 0.8),
    "chunkkv": ("chunkkv", "all", {"mode": "paper", "chunk": 10}, 0.85),
    "quest": ("none", "quest", {"page": 16}, 0.7),
    "topk_oracle": ("none", "topk", {"per": "kv_head"}, 0.97),
    "rocketkv": ("snapkv", "hsa", {"pin_recent": False}, 0.95),
}
TASKS = {"niah_single": ("exact", 0.95), "niah_multivalue": ("fraction", 0.7), "vt": ("fraction", 0.06)}
BUDGETS = (64, 256, 1024)
KV_BYTES = 30 * 3 * 64 * 2 * 4  # smollm2: layers x KV heads x head dim x (K, V) x fp32


def make_records(
    tasks: tuple[str, ...] = ("niah_single", "niah_multivalue"),
    lengths: tuple[int, ...] = (2048,),
    samples: int = 20,
    seeds: tuple[int, ...] = (0,),
    protocols: tuple[str, ...] = ("query_aware",),
    budgets: tuple[int, ...] = BUDGETS,
    methods: tuple[str, ...] = tuple(METHODS),
) -> list[Record]:
    """Records of an accuracy run: dense and 7 methods, with ties, floor cases, null KL, covered budgets."""
    prompts = itertools.product(protocols, tasks, lengths, seeds, range(samples))
    return [record for prompt in prompts for record in _prompt(*prompt, budgets, methods)]


def _prompt(
    protocol: str,
    task: str,
    length: int,
    seed: int,
    sample: int,
    budgets: tuple[int, ...],
    methods: tuple[str, ...],
) -> Iterator[Record]:
    metric, ability = TASKS[task]
    rng = np.random.default_rng([sample, seed, length, len(task), len(protocol)])
    luck = rng.random(4)
    tokens = length - 32 - int(rng.integers(60))
    base = {
        "model": "smollm2_135m",
        "model_fingerprint": "f00d",
        "task": task,
        "task_family": "ruler",
        "task_version": 1,
        "wording": "ruler",
        "length": length,
        "sample": sample,
        "sample_hash": _hash(task, length, seed, sample),
        "prompt_tokens": tokens,
        "protocol": protocol,
        "notes": [],
        "max_new_tokens": 32,
        "seed": seed,
        "metric": metric,
        "gold": ["1234567"],
        "meta": {"depth": 25 * (sample % 5)},
        "stop": "eos",
        "timing": "amortised",
        "peak_bytes": 1_500_000_000,
        "device": "cpu",
        "dtype": "float32",
        "attention": "sdpa",
        "versions": {"torch": "2.13.0", "kvbench": "0.1.0"},
        "commit": "abc1234",
        "time": "2026-01-01T00:00:00",
    }

    def score(quality: float) -> float:
        hits = luck[:1] if metric == "exact" else luck
        return float(np.mean(hits < ability * quality))

    def cell(method: str, budget: str, quality: float, kept: float, read: float, kl: float | None) -> Record:
        eviction, selection, params, _ = METHODS.get(method, ("none", "all", {}, 1))
        return base | {
            "cell": _hash(protocol, task, length, seed, sample, method, budget),
            "method": method,
            "eviction": eviction,
            "selection": selection,
            "format": "native",
            "params": params,
            "budget_requested": budget,
            "budget_covers_prompt": budget != "" and int(budget) >= tokens + 32,
            "score": score(quality),
            "kept_tokens": kept,
            "bytes_resident": int(kept * KV_BYTES),
            "bytes_resident_end": int((kept + 12) * KV_BYTES),
            "bytes_read_per_step": (read + 6) * KV_BYTES,
            "bytes_resident_bf16": int(kept * KV_BYTES / 2),
            "bytes_read_per_step_bf16": (read + 6) * KV_BYTES / 2,
            "kl_to_dense": kl,
            "kl_tokens": 0 if kl is None else 12,
            "agree_top1": None if kl is None else float(np.exp(-kl)),
            "output": f" The number is <b>{sample}</b> | {method}\nand more",
            "output_ids": list(range(12)),
            "prefill_s": 0.16 + 0.01 * luck[0],
            "compress_s": 0.0 if method == "dense" else 0.004 + 0.002 * luck[1],
            "decode_ms_per_token": 9.0 + luck[2],
            "command": f"kvbench run experiment=quickstart cell={method}",
        }

    yield cell("dense", "", 1, tokens, tokens, 0.0)
    for method in methods:
        eviction, selection, _, strength = METHODS[method]
        for budget in budgets:
            share = min(1.0, budget / tokens)
            quality = min(1.0, strength + (1 - strength) * share)
            kept = float(tokens if eviction == "none" else min(budget, tokens))
            extra = 2 * tokens / 16 if selection in ("quest", "hsa") else 0
            kl = float((1 - quality) * 3 * (0.5 + luck[3]) + 1e-3 * (1 - share) + 1e-9)
            yield cell(
                method,
                str(budget),
                quality,
                kept + extra * (kept / tokens),
                min(budget, kept) + extra,
                None if method == "random" and sample == 3 else kl,
            )


def make_efficiency_records(
    batches: tuple[int, ...] = (1, 4, 16), lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
) -> list[Record]:
    """Rows of an efficiency run: dense and 3 methods, one at a time over batch and length, no score."""
    first = make_records(tasks=("niah_single",), samples=1)[0]
    records = []
    for method, slope in {"dense": 1.0, "snapkv": 0.25, "quest": 0.4, "rocketkv": 0.2}.items():
        for batch in batches:
            for length in lengths:
                ms = 30 + batch**0.8 * length * slope * 0.01
                eviction, selection, params, _ = METHODS.get(method, ("none", "all", {}, 1))
                records.append(
                    first
                    | {
                        "cell": _hash(method, batch, length),
                        "method": method,
                        "eviction": eviction,
                        "selection": selection,
                        "params": params,
                        "budget_requested": "" if method == "dense" else "256",
                        "length": length,
                        "score": None,
                        "kl_to_dense": None,
                        "timing": "isolated",
                        "batch": batch,
                        "decode_ms_per_token": ms,
                        "decode_ms_p20": ms * 0.97,
                        "decode_ms_p80": ms * 1.06,
                        "tokens_per_s": 1000 * batch / ms,
                        "prefill_s": length * 0.002,
                        "compress_s": 0.02,
                    }
                )
    return records


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@pytest.fixture(scope="session")
def accuracy() -> Callable[..., list[Record]]:
    """`make_records`: the default run is 7 methods x 3 budgets x 2 tasks x 20 samples, and dense."""
    return make_records


@pytest.fixture(scope="session")
def efficiency() -> Callable[..., list[Record]]:
    """`make_efficiency_records`."""
    return make_efficiency_records


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run folder with every kind of row; read only."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    store = Store(folder, worker="w0")
    scored = make_records(
        ("niah_single",), samples=8, budgets=(64, 256), methods=("random", "snapkv", "quest")
    )
    store.extend(scored + make_efficiency_records((1, 4), (1024, 2048)))
    store.write_config("name: small\nmodel: {name: smollm2_135m}\n")
    return folder
