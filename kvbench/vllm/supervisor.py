"""Runs a command that must not outlive who asked for it: `python guard.py GRACE COMMAND...`.

Stands between kvbench and a server. kvbench holds the other end of this process's standard input and never
writes to it: when that end closes, because kvbench closed it or was killed in whatever way, the server and all
that it started are ended, first asked (SIGTERM), after GRACE seconds forced (SIGKILL). Uses nothing but the
standard library and does not import kvbench, so that it starts at once.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

POLL = 0.2  # seconds
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


def main(argv: list[str]) -> int:
    """Runs the command until it ends or the asker is gone; returns the command's exit code."""
    grace, command = float(argv[0]), argv[1:]
    asker, own = os.getppid(), os.getpid()
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: stopping.append(number))
    # what the server leaves behind when it dies becomes a child of this process instead of getting lost
    _prctl(SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_tie(own))
    while server.poll() is None and not stopping and os.getppid() == asker:
        # the asker never writes: readable means that its end is closed
        if select.select([sys.stdin], [], [], POLL)[0]:
            break
    _end(server.pid, signal.SIGTERM)
    if not _gone(server, grace):
        _end(server.pid, signal.SIGKILL)
        _gone(server, grace)
    return server.returncode if server.returncode is not None else 1


def _tie(guard: int):
    """Ends the server should this process itself be killed; runs in the child before the command."""

    def tie() -> None:
        _prctl(SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != guard:
            os._exit(1)

    return tie


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _end(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _gone(server: subprocess.Popen, seconds: float) -> bool:
    """Waits until the whole process group has ended."""
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
