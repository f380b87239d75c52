"""Workers that something else starts: Slurm by submitit, Ray, or joblib. Each runs the same command.

Hydra's launcher plugins are not used: they start one job per combination of overrides, each composed anew in a folder
of its own, and return when all have ended, so that nothing could be shown or passed on meanwhile. The names are theirs.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kvbench.config.errors import UserError
from kvbench.config.text import one_line
from kvbench.runs.stopping import PARENT

INSTALL = "pip install 'kvbench[cluster]'"
#: minutes that submitit gives a job where `launch.timeout_min` does not say; its own default is 5
MINUTES = 24 * 60


class Job(Protocol):
    """A started worker."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs or waits."""

    def send_signal(self, number: int, /) -> None:
        """Passes a signal on."""

    def end(self) -> None:
        """Ends it, if it has not ended."""


#: starts a worker per command, each with its log, inside the block
Launcher = Callable[
    [Sequence[tuple[list[str], str]], Mapping[str, Any], Path], contextlib.AbstractContextManager[list[Job]]
]


class Work:
    """What is run elsewhere: a command whose output goes to a file."""

    def __call__(self, words: list[str], log: str) -> int:
        """Run it; returns its exit code. It ends when this process does."""
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "kvbench.cli.main", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, PARENT: str(os.getpid())},
            )
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGTERM, signal.SIGUSR1):
                    signal.signal(number, lambda number, _: process.send_signal(number))
            return process.wait()

    def checkpoint(self, words: list[str], log: str) -> Any:
        """What submitit puts into the queue again when Slurm takes the machine away or the time is over."""
        submitit = importlib.import_module("submitit")
        return submitit.helpers.DelayedSubmission(self, words, log)


def launcher(name: str) -> Launcher:
    """The launcher of a name.

    Raises:
        UserError: its package is not installed.
    """
    package, start = LAUNCHERS[name]
    try:
        importlib.import_module(package)
    except ImportError:
        raise UserError(f"launcher: {name} needs {package}, which is not installed: {INSTALL}") from None
    return start


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """One line for settings that a launcher refuses, or a cluster that is not there."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(f"launcher: {what} refused: {type(error).__name__}: {one_line(error)}") from None


class _Submitit:
    def __init__(self, job: Any) -> None:
        self._job = job

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        try:
            return self._job.result()
        except Exception:
            # it was killed or cancelled, or its machine is gone
            return 1 if self._job.state == "FAILED" else 143

    def send_signal(self, number: int) -> None:
        self.end()

    def end(self) -> None:
        if not self._job.done():
            self._job.cancel(check=False)


def _submitit(cluster: str) -> Launcher:
    @contextlib.contextmanager
    def start(
        commands: Sequence[tuple[list[str], str]], settings: Mapping[str, Any], logs: Path
    ) -> Iterator[list[Job]]:
        submitit = importlib.import_module("submitit")
        with _told("submitit"):
            executor = submitit.AutoExecutor(folder=logs / "submitit", cluster=cluster)
            executor.update_parameters(**{"timeout_min": MINUTES, "name": "kvbench", **settings})
            with executor.batch():
                found = [executor.submit(Work(), words, log) for words, log in commands]
        jobs: list[Job] = [_Submitit(job) for job in found]
        try:
            yield jobs
        finally:
            for job in jobs:
                job.end()

    return start


class _Ray:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def poll(self) -> int | None:
        if not self._ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            return self._ray.get(self._reference)
        except Exception:
            # cancelled, or its machine is gone
            return 143

    def send_signal(self, number: int) -> None:
        self.end()

    def end(self) -> None:
        # the command ends with the process that started it
        self._ray.cancel(self._reference, force=True)


@contextlib.contextmanager
def _ray(
    commands: Sequence[tuple[list[str], str]], settings: Mapping[str, Any], logs: Path
) -> Iterator[list[Job]]:
    """On a Ray cluster: `launch.address` is its address, other settings are resources of each worker."""
    ray = importlib.import_module("ray")
    resources = {key: value for key, value in settings.items() if key != "address"}
    with _told("ray"):
        own = not ray.is_initialized()
        if own:
            # nothing of this process's folder is sent: the machines share it
            ray.init(address=settings.get("address"), log_to_driver=False, include_dashboard=False)
        # a node that is lost gives its worker to another one
        work = ray.remote(**{"num_cpus": 1, "max_retries": 3, "scheduling_strategy": "SPREAD", **resources})(
            _work
        )
        jobs: list[Job] = [_Ray(ray, work.remote(words, log)) for words, log in commands]
    try:
        yield jobs
    finally:
        for job in jobs:
            if job.poll() is None:
                job.end()
        if own:
            ray.shutdown()


def _work(words: list[str], log: str) -> int:
    return Work()(words, log)


class _Joblib:
    def __init__(self, codes: list[int | None], number: int, whole: threading.Thread) -> None:
        self._codes, self._number, self._whole = codes, number, whole

    def poll(self) -> int | None:
        code = self._codes[self._number]
        # a worker process that died takes its number with it
        return 143 if code is None and not self._whole.is_alive() else code

    def send_signal(self, number: int) -> None:
        self.end()

    def end(self) -> None:
        loky = importlib.import_module("joblib.externals.loky")
        loky.get_reusable_executor().shutdown(wait=False, kill_workers=True)


@contextlib.contextmanager
def _joblib(
    commands: Sequence[tuple[list[str], str]], settings: Mapping[str, Any], logs: Path
) -> Iterator[list[Job]]:
    """By joblib's own processes, or a backend that is registered with it."""
    joblib = importlib.import_module("joblib")
    codes: list[int | None] = [None] * len(commands)

    def run() -> None:
        with contextlib.suppress(Exception):
            work = (joblib.delayed(_numbered)(number, *one) for number, one in enumerate(commands))
            for number, code in parallel(work):
                codes[number] = code

    with _told("joblib"):
        options = {"n_jobs": len(commands), "return_as": "generator_unordered", "batch_size": 1, **settings}
        parallel = joblib.Parallel(**options)
    whole = threading.Thread(target=run, name="joblib", daemon=True)
    whole.start()
    jobs: list[Job] = [_Joblib(codes, number, whole) for number in range(len(commands))]
    try:
        yield jobs
    finally:
        if whole.is_alive():
            jobs[0].end()


def _numbered(number: int, words: list[str], log: str) -> tuple[int, int]:
    return number, Work()(words, log)


#: package and start of each launcher
LAUNCHERS: dict[str, tuple[str, Launcher]] = {
    "submitit_slurm": ("submitit", _submitit("slurm")),
    "submitit_local": ("submitit", _submitit("local")),
    "ray": ("ray", _ray),
    "joblib": ("joblib", _joblib),
}
