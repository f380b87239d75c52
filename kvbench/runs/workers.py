"""Several workers of one run: processes with the same command, each here with its own GPU or cores, or elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvbench.config.errors import CellsFailed, UserError
from kvbench.config.text import counted
from kvbench.runs.config import RunConfig
from kvbench.runs.follow import Follow
from kvbench.runs.launchers import Job, launcher
from kvbench.runs.progress import ProgressFactory
from kvbench.runs.rerun import key_of_override, text
from kvbench.runs.stopping import PARENT, Stop
from kvbench.runs.store import Store

#: seconds between two looks at the workers
LOOK = 0.5


@dataclass
class Worker:
    """A worker.

    Attributes:
        name: `worker 2`.
        job: its process, or what something else started.
        log: what it prints.
        code: its exit code, once it has ended.
    """

    name: str
    job: Job
    log: Path
    code: int | None = None

    def runs(self) -> bool:
        """Whether it runs or waits."""
        if self.code is None:
            self.code = self.job.poll()
        return self.code is None

    @property
    def last_words(self) -> str:
        """The last line that it printed."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            return next((line for line in reversed(lines) if line.strip()), "")
        return ""


def worker_overrides(cfg: RunConfig) -> list[str]:
    """The overrides of one worker of a run: the user's, for one process that writes no report."""
    own = {"workers", "report", "run_dir", "launcher", "launch"}
    kept = [given for given in cfg.overrides if key_of_override(given).split(".")[0] not in own]
    if (folder := cfg.snapshots.folder) is not None:
        # a worker that something else starts may have another working folder
        kept.append(f"snapshots.folder={text(str(Path(folder).expanduser().absolute()))}")
    return [*kept, "workers=1", "report=false", f"run_dir={Path(cfg.run_dir).absolute()}"]


def run_workers(cfg: RunConfig, progress: ProgressFactory) -> None:
    """Run `cfg.workers` workers on the run's folder, and wait for them.

    Signals are passed on to them. A worker that dies is told, and the others take over its prompts.

    Args:
        cfg: the configuration.
        progress: makes the progress display, of all workers together.

    Raises:
        UserError: what a worker refused.
        Stopped: they were stopped.
        KeyboardInterrupt: on Ctrl-C.
        CellsFailed: cells are left that no worker did, as workers died.
    """
    logs = _logs(cfg)
    with Stop(cfg.stop_seconds).installed() as stop, contextlib.ExitStack() as stack:
        if cfg.launcher is None:
            started = [_started(cfg, log, place) for log, place in zip(logs, list(_places(cfg)), strict=True)]
            jobs = [stack.enter_context(one) for one in started]
        else:
            start = launcher(cfg.launcher)
            commands = [(_words(cfg), str(log)) for log in logs]
            jobs = stack.enter_context(start(commands, cfg.launch, logs[0].parent))
        workers = [
            Worker(f"worker {number}", job, log)
            for number, (job, log) in enumerate(zip(jobs, logs, strict=True), 1)
        ]
        with stop.working():
            _watch(cfg, workers, stop, progress)
        stop.check_between()
    for worker in workers:
        if worker.code == 2:
            raise UserError(worker.last_words.removeprefix("kvbench: error: "))
    missing = _planned(cfg).keys() - _settled(cfg)
    ended = [worker for worker in workers if worker.code not in (0, 1)]
    if missing or len(ended) == len(workers):
        raise CellsFailed(
            f"{cfg.run_dir}: {counted(len(missing), 'cell')} not done; the same command goes on",
            [_told(worker) for worker in ended],
        )
    for worker in ended:
        warnings.warn(f"{_told(worker)}; the others did its prompts", stacklevel=2)


def _planned(cfg: RunConfig) -> Mapping[str, object]:
    """The cells of this command."""
    plans = {plan.file: plan for plan in Store(cfg.run_dir).planned().plans}
    plan = plans.get(Store.plan_name(cfg.request))
    return dict.fromkeys(plan.cells if plan else ())


def _told(worker: Worker) -> str:
    code = worker.code
    how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
    return f"{worker.name} ended with {how}: {worker.last_words or 'no output'} (all of it: {worker.log})"


def _settled(cfg: RunConfig) -> set[str]:
    follow = Follow(Store(cfg.run_dir))
    return follow.done | follow.failed


@dataclass(frozen=True)
class _Place:
    """What one worker has for itself: a GPU, or cores."""

    environment: dict[str, str]
    cores: tuple[int, ...] = ()


def _places(cfg: RunConfig) -> Iterator[_Place]:
    gpus = _gpus(cfg)
    if gpus:
        if cfg.workers > len(gpus):
            raise UserError(
                f"workers: {cfg.workers} need a GPU each, and this machine has {len(gpus)}; give at most that, or "
                "model.device=cpu"
            )
        for number in range(cfg.workers):
            yield _Place({"CUDA_VISIBLE_DEVICES": gpus[number]})
        return
    if cfg.kind == "efficiency":
        raise UserError("workers: on a CPU they would disturb each other's times; give workers=1")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = max(1, len(cores) // cfg.workers)
    for number in range(cfg.workers):
        own = tuple(cores[(number * each + i) % len(cores)] for i in range(each)) if cores else ()
        # a user's own number of threads counts
        yield _Place({"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(each))}, own)


def _gpus(cfg: RunConfig) -> list[str]:
    """Names of the GPUs that workers may use; none for a run on a CPU."""
    kind, _, index = cfg.model.device.partition(":")
    if index:
        raise UserError(
            f"workers: each takes a GPU of its own, and model.device={cfg.model.device} names one; give cuda"
        )
    if kind == "cpu":
        return []
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def _words(cfg: RunConfig) -> list[str]:
    """The command of a worker, behind `kvbench`."""
    folders = [word for folder in cfg.config_dirs for word in ("--config-dir", folder)]
    return ["run", *folders, *worker_overrides(cfg)]


def _logs(cfg: RunConfig) -> list[Path]:
    """A new file for what each worker prints."""
    folder = Path(cfg.run_dir).absolute() / "logs"
    name = f"worker-{socket.gethostname()}-{os.getpid()}"
    logs = [folder / f"{name}-{number}.log" for number in range(1, cfg.workers + 1)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for log in logs:
            log.write_bytes(b"")
    except OSError as error:
        raise UserError(f"run_dir: cannot write in {folder}: {error.strerror}") from None
    return logs


class _Process:
    """A worker's process on this machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@contextlib.contextmanager
def _started(cfg: RunConfig, log: Path, place: _Place) -> Iterator[Job]:
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "kvbench.cli.main", *_words(cfg)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **place.environment, PARENT: str(os.getpid())},
            # a Ctrl-C on the terminal reaches this process, which passes it on
            start_new_session=True,
        )
    if place.cores:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(process.pid, place.cores)
    job = _Process(process)
    try:
        yield job
    finally:
        job.end()


def _watch(cfg: RunConfig, workers: Sequence[Worker], stop: Stop, progress: ProgressFactory) -> None:
    """Wait for the workers, pass signals on, show what they did."""
    store = Store(cfg.run_dir)
    path = store.run_dir / store.plan_name(cfg.request)
    before = path.stat().st_mtime_ns if path.exists() else None
    running = list(workers)

    def pause() -> None:
        time.sleep(LOOK)
        if (number := stop.taken()) is not None:
            for worker in running:
                worker.job.send_signal(number)
        running[:] = [worker for worker in running if worker.runs()]

    # a worker writes the plan when it has loaded the model
    while running and (not path.exists() or path.stat().st_mtime_ns == before):
        pause()
    follow = Follow(store)
    planned = _planned(cfg).keys()
    left = planned - follow.done - (set() if cfg.retry_failed else follow.failed)
    with progress(len(left), 1) as display:
        display.start_prompt(f"{len(workers)} workers")
        while running:
            pause()
            done, failed = follow.look()
            new = (done | failed) & left
            left -= new
            display.cells_done(len(new))
