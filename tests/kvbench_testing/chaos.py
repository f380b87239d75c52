"""Chaos: workers that are killed, stopped and refused by the disk at random, against an undisturbed run.

`python -m kvbench_testing.chaos` has loaded torch and forks. It reads requests, one line of JSON each: a name and its
arguments, and answers with the result of the function of that name in `REQUESTS`. Run with OMP_NUM_THREADS=1 and
TOKENIZERS_PARALLELISM=false.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kvbench import report
from kvbench.cli import main
from kvbench.config import files
from kvbench.config.errors import Stopped, UserError
from kvbench.experiments.accuracy import run as accuracy
from kvbench.models.load import load_model
from kvbench.runs import context, plan, provenance, record, workers
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


def forked(work: Callable[[], int], log: Path, errors: Path | None = None) -> int:
    """Process id of a child that works and ends with the code that it returns.

    Args:
        work: what it does.
        log: what it prints.
        errors: what it prints to standard error; None for the same file.
    """
    if pid := os.fork():
        return pid
    code = 70
    # a background job ignores Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    try:
        for handle, path in ((1, log), (2, errors or log)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), handle)
        # a child of a child has such an object already, whose end must not close the new file
        sys.stdout, sys.stderr = (os.fdopen(handle, "w", buffering=1, closefd=False) for handle in (1, 2))
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


def warm(model: Path) -> Any:
    """The loaded model; what every worker finds out anew at its start is known to those that are forked from now on."""
    cfg = configuration(model, Path("unused"))
    loaded = load_model(cfg.model, context.register_attention())
    plan.operations_called = functools.cache(plan.operations_called)
    run = context.RunContext(cfg, loaded, context.make_renderer(cfg, loaded))
    run.plan()
    provenance.commit()
    return loaded


def shares(model: str, folder: str) -> dict[str, Any]:
    """Three workers, undisturbed: prefills of each, and how often a prompt was prefilled."""
    run = Path(folder)
    run.mkdir(parents=True)
    cfg, loaded = configuration(Path(model), run, "task.samples=12"), warm(Path(model))
    original = accuracy.prefill_part
    # longer than all else that a prompt takes, so that shares do not depend on the machine
    accuracy.prefill_part = lambda *args: time.sleep(0.5) or original(*args)
    codes = []
    for pid in [forked(worker_without_faults(cfg, loaded), run / "worker.log") for _ in range(WORKERS)]:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    lines = [line.split() for line in (run / "prefills.log").read_text().splitlines()]
    return {
        "codes": codes,
        "shares": sorted(Counter(pid for pid, _ in lines).values()),
        "per prompt": sorted(set(Counter(prompt for _, prompt in lines).values())),
        "cells": len(rows(run)),
    }


def campaigns(model: str, folder: str, kills: int, seed: int) -> dict[str, int]:
    """Campaigns until there were so many kills; the sums of what happened."""
    where, loaded = Path(folder), warm(Path(model))
    undisturbed = where / "undisturbed"
    undisturbed.mkdir(parents=True)
    cfg = configuration(Path(model), undisturbed)
    os.waitpid(forked(worker_without_faults(cfg, loaded), undisturbed / "worker.log"), 0)
    assert says_complete(undisturbed), (undisturbed / "worker.log").read_text()[-2000:]
    sums: Counter[str] = Counter(cells=len(rows(undisturbed)))
    dice = random.Random(seed)
    while sums["kills"] < kills:
        number = sums["campaigns"]
        left = min(kills - sums["kills"], 12)
        sums.update(campaign(Path(model), where / str(number), undisturbed, left, dice, loaded))
        sums["campaigns"] += 1
    return dict(sums)


# --- commands without the time that their imports take


class Forked:
    """What `subprocess.Popen` is to `kvbench.runs.workers`: a fork of this process instead of a new one."""

    def __init__(
        self, command: list[str], stdin: Any, stdout: Any, stderr: Any, env: dict[str, str], **_: Any
    ) -> None:
        self.returncode: int | None = None
        self.pid = forked(lambda: called(command[3:], env), Path(stdout.name))

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 60) -> int | None:
        end = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        return self.returncode


def called(words: list[str], env: dict[str, str]) -> int:
    """`kvbench WORDS` with an environment."""
    os.environ.clear()
    os.environ.update(env)
    workers.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=Forked, DEVNULL=None, STDOUT=None, TimeoutExpired=TimeoutError
    )
    return main.main(words)


def start(words: list[str], out: str, err: str) -> int:
    """Process id of `kvbench WORDS`, which prints to two files; its prefills take some time, to be caught at it."""
    original = accuracy.prefill_part

    def work() -> int:
        accuracy.prefill_part = lambda *args: time.sleep(0.2) or original(*args)
        return called(words, dict(os.environ))

    return forked(work, Path(out), Path(err))


def wait(pid: int) -> int:
    """Exit code of a command that was started."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


REQUESTS = {"campaigns": campaigns, "shares": shares, "start": start, "wait": wait}


def answer(name: str, *words: Any) -> Any:
    """The result of a request; of what forks workers, in a child of its own, which changes nothing here."""
    if name in ("start", "wait"):
        return REQUESTS[name](*words)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            found = json.dumps({"found": REQUESTS[name](*words)})
        except BaseException:
            found = json.dumps({"failed": traceback.format_exc()})
        with os.fdopen(writer, "w") as file:
            file.write(found)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        found = json.loads(file.read())
    os.waitpid(pid, 0)
    return found.get("found", found)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)
