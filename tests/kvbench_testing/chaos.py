"""Chaos: workers that are killed, stopped and refused by the disk at random, against an undisturbed run.

`python -m kvbench_testing.chaos MODEL FOLDER KILLS SEED` prints one JSON object with what happened; without the last
two, how three undisturbed workers shared the prompts. Run with OMP_NUM_THREADS=1 and
TOKENIZERS_PARALLELISM=false: workers are forked from this process, which has loaded torch and the model.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvbench import report
from kvbench.config import files
from kvbench.config.errors import Stopped, UserError
from kvbench.experiments.accuracy import run as accuracy
from kvbench.models.load import load_model
from kvbench.runs import context, record
from kvbench.runs.config import RunConfig, load
from kvbench.runs.progress import Progress
from kvbench.runs.stopping import EXIT_CODE, raised_at_once
from kvbench.runs.store import Store

WORKERS = 3
OVERRIDES = [
    "experiment=quickstart", "task=[ruler_niah_single_1]", "task.length=[1024]", "task.samples=8",
    "task.max_new_tokens=4", "task.wording=own", "method=[dense,knorm,snapkv,quest]", "budget.tokens=[64,96]",
    "decode.block_rows=8", "lease=1",
]  # fmt: skip
#: fields of a row that say when and how fast, which no two runs share
TIMES = {"time", "prefill_s", "compress_s", "decode_ms_per_token", "peak_bytes", "command", "commit"}
KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def configuration(model: Path, folder: Path, *more: str) -> RunConfig:
    """The run that is disturbed."""
    return load([*OVERRIDES, f"model.path={model}", "model.name=tiny", f"run_dir={folder}", *more])


def rows(folder: Path) -> dict[str, str]:
    """Every finished cell without its times, as text by id."""
    return {
        row["cell"]: json.dumps({k: v for k, v in row.items() if k not in TIMES}, sort_keys=True)
        for row in Store(folder).scan()[0]
    }


def table(folder: Path) -> str:
    """The summary without times, as the text of its CSV file."""
    summary = report.load(folder).summary()
    timed = [name for name in summary.columns if name.endswith(("_s", "_ms", "per_token")) or "peak" in name]
    named = summary.drop(columns=[*timed, "run"], errors="ignore")
    return named.to_csv(index=False, float_format="%.10g")


def differences(folder: Path, undisturbed: Path) -> dict[str, int]:
    """How a folder differs from the undisturbed one: cells lost, strange or other, rows that contradict, the table."""
    found, expected = rows(folder), rows(undisturbed)
    by_cell: dict[str, set[str]] = {}
    for path in Store(folder).files("cells"):
        for row, _ in Store(folder).lines_of(path, []):
            text = json.dumps({k: v for k, v in row.items() if k not in TIMES}, sort_keys=True)
            by_cell.setdefault(row["cell"], set()).add(text)
    return {
        "lost": len(expected.keys() - found.keys()),
        "strange": len(found.keys() - expected.keys()),
        "other": sum(found[cell] != expected[cell] for cell in found.keys() & expected.keys()),
        "contradicting": sum(len(texts) > 1 for texts in by_cell.values()),
        "table": int(table(folder) != table(undisturbed)),
    }


def says_complete(folder: Path) -> bool:
    """Whether the folder calls itself complete."""
    planned = Store(folder).planned().cells
    return bool(planned) and planned.keys() <= Store(folder).done()


def forked(work: Callable[[], int], log: Path) -> int:
    """Process id of a child that works and ends with the code that it returns."""
    if pid := os.fork():
        return pid
    code = 70
    # a background job ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        code = work()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def worker(cfg: RunConfig, faults: random.Random, loaded: Any) -> Callable[[], int]:
    """A worker, with the faults of its machine."""
    kind = faults.choice(["none", "none", "clock", "small disk", "no space", "read-only"])
    after = faults.randrange(1, 6)

    def work() -> int:
        context.load_model = lambda *_: loaded
        counted(cfg)
        {"clock": backwards, "small disk": small_disk, "no space": full, "read-only": read_only}.get(
            kind, lambda *_: None
        )(cfg, after)
        try:
            with raised_at_once():
                accuracy.run_accuracy(cfg, Progress)
        except Stopped:
            return EXIT_CODE
        except KeyboardInterrupt:
            return 130
        except UserError as error:
            print(f"kvbench: error: {error}", file=sys.stderr)
            return 2
        return 0

    return work


def counted(cfg: RunConfig) -> None:
    """Note every prefill in a file of the folder: a line with process and prompt."""
    original = accuracy.prefill_part
    log = os.open(Path(cfg.run_dir) / "prefills.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def prefill_part(at, part, cells):
        os.write(log, f"{os.getpid()} {at.group.prompt.hash}\n".encode())
        return original(at, part, cells)

    accuracy.prefill_part = prefill_part


def backwards(*_: object) -> None:
    """Wall clocks that run backwards."""
    start = time.time()
    time.time = lambda: 2 * start - time.monotonic() * 1000  # type: ignore[assignment]
    real = record.datetime

    class Clock:
        UTC = real.UTC

        class datetime(real.datetime):
            @classmethod
            def now(cls, tz=None):
                return real.datetime.fromtimestamp(1e9 - time.monotonic() * 1000, tz)

    record.datetime = Clock  # type: ignore[assignment]


def small_disk(cfg: RunConfig, after: int) -> None:
    """Files cannot grow beyond a size: a line is cut anywhere."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after * 7001, resource.RLIM_INFINITY))


def full(cfg: RunConfig, after: int) -> None:
    """The disk is full from the n-th write of rows on."""
    refused(errno.ENOSPC, after)


def read_only(cfg: RunConfig, after: int) -> None:
    """The disk turns read-only at the n-th write of rows."""
    refused(errno.EROFS, after)


def refused(number: int, after: int) -> None:
    """Half of the n-th piece that is written gets on disk, and nothing after it."""
    writes, original = Counter(), files._put

    def put(handle: int, data: bytes) -> None:
        writes["n"] += 1
        if writes["n"] < 3 * after:
            return original(handle, data)
        if writes["n"] == 3 * after:
            os.write(handle, data[: len(data) // 2])
        raise OSError(number, os.strerror(number))

    files._put = put


def campaign(
    model: Path, folder: Path, undisturbed: Path, kills: int, dice: random.Random, loaded: Any
) -> dict:
    """Start workers on one folder, disturb them up to a number of kills, then let them finish."""
    folder.mkdir()
    cfg = configuration(model, folder)
    happened: Counter[str] = Counter()
    # the longest that the whole may take, against workers that wait for ever
    end = time.monotonic() + 300
    running: set[int] = set()
    disturbed = 0

    def start(quiet: bool) -> None:
        faults = random.Random(0) if quiet else dice
        work = worker(cfg, faults, loaded) if not quiet else worker_without_faults(cfg, loaded)
        running.add(forked(work, folder / "worker.log"))

    while disturbed < kills and not says_complete(folder) and time.monotonic() < end:
        while len(running) < WORKERS:
            start(quiet=False)
        time.sleep(dice.uniform(0.02, 0.4))
        for pid in ended(running, happened):
            running.discard(pid)
        if not running:
            continue
        pid = dice.choice(sorted(running))
        if dice.random() < 0.15:
            # silent for longer than the lease, and then back: two workers on one prompt
            os.kill(pid, signal.SIGSTOP)
            time.sleep(1.5)
            os.kill(pid, signal.SIGCONT)
            happened["stopped for a while"] += 1
            continue
        number = dice.choice(KILLS)
        os.kill(pid, number)
        disturbed += 1
        happened[signal.Signals(number).name] += 1
        if number == signal.SIGKILL:
            os.waitpid(pid, 0)
            running.discard(pid)
        if says_complete(folder):
            happened["falsely complete"] += differences(folder, undisturbed)["lost"] > 0
    while not says_complete(folder) and time.monotonic() < end:
        while len(running) < 2:
            start(quiet=True)
        time.sleep(0.1)
        for pid in ended(running, happened):
            running.discard(pid)
    for pid in running:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return {**happened, **differences(folder, undisturbed), "kills": disturbed}


def worker_without_faults(cfg: RunConfig, loaded: Any) -> Callable[[], int]:
    """A worker on a machine in order."""
    always = random.Random()
    always.choice = lambda options: options[0]  # type: ignore[method-assign]
    return worker(cfg, always, loaded)


def ended(running: set[int], happened: Counter[str]) -> list[int]:
    """Workers that have ended, counted by how."""
    gone = []
    for pid in running:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            gone.append(pid)
            happened[f"exit {os.waitstatus_to_exitcode(status)}"] += 1
    return gone


def shares(model: Path, folder: Path) -> dict[str, Any]:
    """Three workers, undisturbed: prefills of each, and how often a prompt was prefilled."""
    folder.mkdir(parents=True)
    cfg = configuration(model, folder, "task.samples=12")
    loaded = load_model(cfg.model, context.register_attention())
    original = accuracy.prefill_part
    # longer than all else that a prompt takes, so that shares do not depend on the machine
    accuracy.prefill_part = lambda *args: time.sleep(0.5) or original(*args)
    codes = []
    for pid in [forked(worker_without_faults(cfg, loaded), folder / "worker.log") for _ in range(WORKERS)]:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    lines = [line.split() for line in (folder / "prefills.log").read_text().splitlines()]
    return {
        "codes": codes,
        "shares": sorted(Counter(pid for pid, _ in lines).values()),
        "per prompt": sorted(set(Counter(prompt for _, prompt in lines).values())),
        "cells": len(rows(folder)),
    }


def main(model: Path, folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Campaigns until there were so many kills; the sums of what happened."""
    undisturbed = folder / "undisturbed"
    undisturbed.mkdir(parents=True)
    cfg = configuration(model, undisturbed)
    loaded = load_model(cfg.model, context.register_attention())
    os.waitpid(forked(worker_without_faults(cfg, loaded), undisturbed / "worker.log"), 0)
    assert says_complete(undisturbed), (undisturbed / "worker.log").read_text()[-2000:]
    sums: Counter[str] = Counter(cells=len(rows(undisturbed)))
    dice = random.Random(seed)
    while sums["kills"] < kills:
        number = sums["campaigns"]
        left = min(kills - sums["kills"], 12)
        sums.update(campaign(model, folder / str(number), undisturbed, left, dice, loaded))
        sums["campaigns"] += 1
    return dict(sums)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(shares(Path(sys.argv[1]), Path(sys.argv[2]))))
    else:
        print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
