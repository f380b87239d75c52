"""Runs a command that must not outlive its parent: `python supervisor.py GRACE COMMAND...`.

Runs between kvbench and a server. kvbench holds the other end of this process's standard input and never writes to
it. When that end closes, because kvbench closed it or was killed, the server and all its child processes are
terminated: first with SIGTERM, after GRACE seconds with SIGKILL. Uses only the standard library and does not import
kvbench, so that it starts at once.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

POLL = 0.2  # seconds
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


def main(argv: list[str]) -> int:
    """Runs the command until it ends or the parent is gone; returns the command's exit code."""
    grace, command = float(argv[0]), argv[1:]
    parent, supervisor = os.getppid(), os.getpid()
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: stopping.append(number))
    # orphans of a dying server become children of this process, so that it can reap them
    _prctl(SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with(supervisor)
    )
    while server.poll() is None and not stopping and os.getppid() == parent:
        # the parent never writes: readable means that its end is closed
        if select.select([sys.stdin], [], [], POLL)[0]:
            break
    _signal_group(server.pid, signal.SIGTERM)
    if not _wait_for_group(server, grace):
        _signal_group(server.pid, signal.SIGKILL)
        _wait_for_group(server, grace)
    return server.returncode if server.returncode is not None else 1


def _die_with(supervisor: int) -> Callable[[], None]:
    """A function to run in the child before the command: the kernel then ends the server if the supervisor dies."""

    def set_signal() -> None:
        _prctl(SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != supervisor:
            os._exit(1)

    return set_signal


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _wait_for_group(server: subprocess.Popen, seconds: float) -> bool:
    """Waits until the whole process group has ended; returns False if it has not after this time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        server.poll()
        if server.returncode is not None:
            _reap()
        try:
            os.killpg(server.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
