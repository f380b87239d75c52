"""Ends a run early and in order: a signal sets a flag, and the run stops at the next safe point.

SIGTERM and Ctrl-C abandon the prompt that is being worked on, as what sends them kills soon; SIGUSR1, with which Slurm
warns in good time, and `stop_after` let it finish.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from kvbench.config.errors import Stopped, UserError

#: exit code of a run that was stopped and can be resumed; EX_TEMPFAIL of sysexits.h
EXIT_CODE = 75
#: environment variable with the process that started a worker
PARENT = "KVBENCH_PARENT"
_PR_SET_PDEATHSIG = 1
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def seconds(text: str) -> float:
    """Seconds of a duration as `3h30m`, `45m`, `90s` or a number of seconds.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text)
    total = (
        sum(int(n or 0) * unit for n, unit in zip(found.groups(), _UNITS.values(), strict=True))
        if found
        else 0
    )
    if not total:
        raise UserError(f"stop_after: {text!r} is not a duration, as 3h30m, 45m or 90s")
    return float(total)


@contextmanager
def raised_at_once() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end a command in order where nothing is at stake: outside of `Stop.installed`."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def ends_with_parent() -> None:
    """Have a worker get SIGTERM when the process that started it ends, however it ends; Linux only.

    Raises:
        Stopped: it has ended already.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        raise Stopped("the process that started this worker has ended")


class Stop:
    """Whether a run is to stop, and why.

    Args:
        after: seconds from now, None for no limit.
        clock: monotonic seconds.
    """

    def __init__(self, after: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if after is None else clock() + after
        self._signal: int | None = None
        self._to_pass: int | None = None
        self._working = False

    @contextmanager
    def installed(self) -> Iterator[Stop]:
        """Handle signals inside the block; in a thread, where that is impossible, they are left alone."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = [signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            numbers.append(signal.SIGINT)
        before = {number: signal.signal(number, self._received) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self._to_pass = number
        again = number == self._signal == signal.SIGINT
        # the most urgent one counts
        if self._signal is None or self._signal == signal.SIGUSR1:
            self._signal = number
        # who presses Ctrl-C twice does not want to wait for a safe point
        if again or not self._working:
            self.check()

    def taken(self) -> int | None:
        """A signal that came since the last call, for those who pass it on; it still counts here."""
        number, self._to_pass = self._to_pass, None
        return number

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work that signals do not break off except at its calls of `check`; what came meanwhile counts afterwards."""
        self._working = True
        try:
            yield
        finally:
            self._working = False

    def check(self) -> None:
        """A safe point inside a prompt.

        Raises:
            KeyboardInterrupt: on SIGINT.
            Stopped: on SIGTERM.
        """
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal == signal.SIGTERM:
            raise Stopped("stopped by SIGTERM")

    def check_between(self) -> None:
        """A safe point between prompts.

        Raises:
            KeyboardInterrupt: on SIGINT.
            Stopped: on SIGTERM or SIGUSR1, or when the time is over.
        """
        self.check()
        if self._signal is not None:
            raise Stopped(f"stopped by {signal.Signals(self._signal).name}")
        if self._end is not None and self._clock() >= self._end:
            raise Stopped("stopped, as stop_after says")
