"""The goals of docs/performance.md side by side: dense, 40 cells, and kvpress where its environment is there.

`python -m kvbench_testing.side_by_side [cpu] [SETTING ...]` takes settings of experiment=bench_ablation; with `cpu` it
measures CPU seconds of one thread, for a machine that does other things too. Runs are taken in turn; the better of
three counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from kvbench.config.compose import compose
from kvbench.engine.prefill import prefill
from kvbench.experiments.bench_ablation.run import REPEATS, Stages, measure
from kvbench.methods import Budget, Shape, build
from kvbench.runs.config import RunConfig, validate
from kvbench.runs.context import PromptContext, RunContext
from kvbench.runs.progress import ProgressDisplay

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / ".venv-peer/bin/python"
BUDGET = 256
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}


class Silent(ProgressDisplay):
    """Shows nothing."""

    def __init__(self, *_: int) -> None:
        pass

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def main() -> None:
    """Measure and print."""
    cpu = "cpu" in sys.argv[1:]
    settings = [word for word in sys.argv[1:] if word != "cpu"]
    if cpu:
        torch.set_num_threads(1)
        # the stages of a run are measured by it
        time.perf_counter = time.process_time
    with tempfile.TemporaryDirectory() as folder:
        cfg = validate(compose(["experiment=bench_ablation", f"run_dir={folder}/run", *settings]))
        run = RunContext.load(cfg)
        ids = PromptContext.render(run, run.plan()[0]).prompt.ids
        new = cfg.task[next(iter(cfg.task))]["max_new_tokens"]
        with peer(run, ids, new, Path(folder), cpu) as one_cell:
            found = in_turn(cfg, one_cell)
        scores = score_seconds(run, ids)
    report(found, scores, len(ids), cpu)


def in_turn(
    cfg: RunConfig, one_cell: Callable[[], dict[str, float]] | None
) -> dict[str, list[Stages] | list[dict]]:
    """Every setting three times, in turn."""
    dense = {"dense": {"method": "dense"}}
    settings = {
        "dense": replace(cfg, method=dense, kl=False),
        "cells": replace(cfg, kl=False),
        "cells with KL": replace(cfg, kl=True),
    }
    found: dict[str, list] = {name: [] for name in settings} | {"kvpress": []}
    for _ in range(REPEATS):
        for name, setting in settings.items():
            found[name].append(measure(setting, Silent))
        if one_cell is not None:
            found["kvpress"].append(one_cell())
    return found


@contextmanager
def peer(
    run: RunContext, ids: list[int], new: int, folder: Path, cpu: bool
) -> Iterator[Callable[[], dict[str, float]] | None]:
    """Measures a cell of kvpress; None where its environment is not there."""
    if not PEER.exists():
        print("no .venv-peer: kvpress is left out; `make bench-peer` makes it")
        yield None
        return
    prompt = folder / "prompt.json"
    prompt.write_text(json.dumps(ids))
    command = [
        str(PEER),
        str(Path(__file__).with_name("peer.py")),
        run.loaded.model.name_or_path,
        str(prompt),
        str(BUDGET),
        str(new),
    ]
    env = os.environ | ({"OMP_NUM_THREADS": "1"} if cpu else {})
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert json.loads(process.stdout.readline())["ready"]

        def one_cell() -> dict[str, float]:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("cpu\n" if cpu else "wall\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield one_cell
        process.stdin.close()


@torch.inference_mode()
def score_seconds(run: RunContext, ids: list[int]) -> float:
    """Seconds of SnapKV's scores in all layers, as kvpress's are set: the better of three."""
    snapshot = prefill(run.loaded.model, ids[:-1], 64)
    layers = snapshot.layers
    shape = Shape(snapshot.length, 1, len(layers), layers[0].k_HTD.shape[2])
    eviction = build({"method": "snapkv", "mode": "kvpress"}).resolve(shape, Budget(tokens=BUDGET)).eviction
    spent = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for layer in layers:
            eviction.scores(layer)
            layer.forget()
        spent.append(time.perf_counter() - started)
    return min(spent)


def report(found: dict[str, list], scores: float, length: int, cpu: bool) -> None:
    """Print the times and the ratios."""
    unit = "CPU s of one thread" if cpu else f"s, {torch.get_num_threads()} threads"
    stages: dict[str, Stages] = {
        name: min(runs, key=lambda run: run.total) for name, runs in found.items() if name != "kvpress"
    }
    print(f"prompt of {length} tokens; {unit}; the better of {REPEATS}, in turn")
    for name, run in stages.items():
        print(
            f"{name:<14} {run.total:7.2f} = prefill {run.prefill:.2f} + compress {run.compress:.2f}"
            f" + decode {run.decode:.2f}"
        )
    dense, cells, with_kl = (stages[name].total for name in ("dense", "cells", "cells with KL"))
    count = stages["cells"].cells - 1
    print(f"{count} cells: {cells / dense:.2f} x dense; with KL {with_kl / dense:.2f} x")
    if found["kvpress"]:
        theirs = min(found["kvpress"], key=lambda run: run["cell"])
        print(
            f"kvpress, a cell {theirs['cell']:7.2f} = prefill {theirs['prefill']:.2f} (scores {theirs['scores']:.3f})"
        )
        print(f"a cell of kvpress: {theirs['cell'] / (cells / count):.1f} x one of {count} cells")
        print(f"dense: {dense / theirs['cell']:.2f} x a cell of kvpress")
        print(f"SnapKV's scores of kvpress: {theirs['scores'] / scores:.1f} x ours ({scores:.3f})")


if __name__ == "__main__":
    main()
