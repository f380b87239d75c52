"""A folder of many cells, and what looking at it and going on with it cost: `make bench-store`.

`python -m kvbench_testing.large_store FOLDER CELLS...` makes a folder for each number of cells and prints a table: CPU
time and peak memory of every command, imports and the model apart. The rows are those of one prompt, stored under the
ids of all the others.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kvbench.cli import main as cli
from kvbench.experiments.accuracy import run as accuracy
from kvbench.experiments.accuracy.run import run_accuracy
from kvbench.runs.config import RunConfig, load
from kvbench.runs.context import RunContext
from kvbench.runs.follow import Follow
from kvbench.runs.progress import Progress
from kvbench.runs.store import Store

#: cells of a prompt: dense, and four methods at ten budgets
PER_PROMPT = 41
OVERRIDES = [
    "experiment=quickstart", "task=[ruler_niah_single_1]", "task.length=[1024]", "task.max_new_tokens=4",
    "task.wording=own", "method=[dense,knorm,snapkv,streaming_llm,quest]", "decode.block_rows=8", "kl=true",
    f"budget.tokens={[64 + 16 * i for i in range(10)]}", "report=false",
]  # fmt: skip
TITLES = {
    "done": "ids of the finished cells",
    "resume": "resume, until nothing is left to do",
    "status": "status",
    "check": "status --check",
    "report": "report",
}


def words(model: Path, folder: Path, cells: int) -> list[str]:
    """The overrides of the run."""
    samples = [f"task.samples={cells // PER_PROMPT}"]
    return [*OVERRIDES, *samples, f"model.path={model}", "model.name=tiny", f"run_dir={folder}"]


def fill(model: Path, folder: Path, cells: int) -> None:
    """Make the folder: run one prompt, and store its rows for every prompt."""
    cfg = load(words(model, folder, cells))
    run_accuracy(load([*words(model, folder, cells), "limit=1"]), Progress)
    rows = {(row["method"], row["budget_requested"]): row for row in Store(folder).scan()[0]}
    store = Store(folder, "copies")
    for group in RunContext.load(cfg).plan(folder)[1:]:
        copies = []
        for number, cell in enumerate(group.cells):
            row = rows[cell.label, cell.budget.label() if cell.budget else ""]
            # scores that differ, so that there is something to sum up
            own = {"cell": cell.id, "sample": group.index, "sample_hash": group.prompt.hash}
            copies.append({**row, **own, "score": float((group.index * 7 + number) % 3 > 0)})
        store.extend(copies)


def measure(what: str, model: Path, folder: Path, cells: int) -> dict[str, float]:
    """CPU seconds and bytes of one command on the folder, imports and the model apart."""
    work = command(what, load(words(model, folder, cells)))
    gc.collect()
    before, started = memory(), time.process_time()
    work()
    return {"cpu": time.process_time() - started, "bytes": memory() - before}


def command(what: str, cfg: RunConfig) -> Callable[[], object]:
    """What is measured, with all that it imports loaded."""
    folder = cfg.run_dir
    if what == "done":
        return lambda: Follow(Store(folder))
    if what == "resume":
        context = RunContext.load(cfg)
        accuracy.RunContext = type("Loaded", (), {"load": staticmethod(lambda _: context)})
        return lambda: run_accuracy(cfg, Progress)
    from kvbench import report
    from kvbench.report import folder as _folder
    from kvbench.report import page as _page
    from kvbench.report import plots as _plots

    del _folder, _page, _plots
    if what == "report":
        return lambda: report.write_report(report.load(folder))
    more = {"status": [], "check": ["--check"]}[what]
    return lambda: cli.main(["status", folder, *more])


def memory() -> int:
    """Bytes that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(folder: Path, sizes: list[int]) -> None:
    """Make the folders, measure each command in a process of its own, print the table."""
    from conftest import save_tiny_model

    model = folder / "model"
    if not model.exists():
        save_tiny_model(model, "llama", 3, 3, 0)
    found: dict[tuple[str, int], dict[str, float]] = {}
    for cells in sizes:
        run = folder / str(cells)
        if not run.exists():
            fill(model, run, cells)
        for what in TITLES:
            args = [
                sys.executable,
                "-m",
                "kvbench_testing.large_store",
                "one",
                what,
                str(model),
                str(run),
                str(cells),
            ]
            done = subprocess.run(args, capture_output=True, text=True, check=True, env=os.environ)
            found[what, cells] = json.loads(done.stdout.splitlines()[-1])
    print("| command | " + " | ".join(f"{cells:,} cells" for cells in sizes) + " | growth of time |")
    print("|---|" + "---|" * (len(sizes) + 1))
    for what, title in TITLES.items():
        row = [found[what, cells] for cells in sizes]
        texts = [f"{one['cpu']:.1f} s, {one['bytes'] / 1e6:.0f} MB" for one in row]
        growth = row[-1]["cpu"] / row[0]["cpu"]
        print(f"| {title} | " + " | ".join(texts) + f" | {growth:.1f} |")


if __name__ == "__main__":
    if sys.argv[1] == "one":
        result = measure(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
        print(json.dumps(result))
    else:
        main(Path(sys.argv[1]), [int(number) for number in sys.argv[2:]])
