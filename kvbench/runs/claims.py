"""Who works on which prompt: claims in the run's folder, which is all that workers share.

A claim is a file that is created exclusively, which works on NFS too. Its owner counts in it while it is alive. A claim
whose count has not changed for a while has expired, and another worker takes it over: by creating the file of the next
generation, which only one can do. The while is measured by the observer's own monotonic clock, so that no clocks of two
machines are compared. Claims save work and nothing depends on them: a worker that was believed dead may still store its
rows, which are then there twice and count once.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.config.errors import UserError
from kvbench.config.numbers import read_json

#: bytes of a claim's file, which is written in place
SIZE = 1024
#: signs of life per lease
BEATS = 6


@dataclass
class Claim:
    """A claimed prompt.

    Attributes:
        path: its file.
        generation: how often it has been taken over.
    """

    path: Path
    generation: int
    file: int


class Claims:
    """The claims of a folder, for one worker; inside a `with` block a thread gives its signs of life.

    Args:
        run_dir: the run's folder.
        worker: this worker's name.
        lease: seconds after which the claim of a silent worker has expired.
        clock: monotonic seconds.
    """

    def __init__(
        self, run_dir: Path, worker: str, lease: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder = run_dir / "claims"
        self.worker, self.lease, self._clock = worker, lease, clock
        #: what the signs of life tell besides the count
        self.facts: dict[str, Any] = {}
        self._who = {"worker": worker, "pid": os.getpid(), "place": place(), "born": born(os.getpid())}
        self._seen: dict[Path, tuple[bytes, float]] = {}
        self._claim: Claim | None = None
        self._beat = 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> Claims:
        threading.Thread(target=self._live, name="claims", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _live(self) -> None:
        while not self._over.wait(self.lease / BEATS):
            self.beat()

    def beat(self) -> None:
        """One sign of life."""
        with self._lock, contextlib.suppress(OSError):
            # a claim that was taken over is another file, and writing to the old one does no harm
            if self._claim is not None:
                self._write(self._claim.file)

    def _write(self, file: int) -> None:
        self._beat += 1
        text = json.dumps({"beat": self._beat, **self._who, **self.facts}, ensure_ascii=True)
        if len(text) >= SIZE:
            text = json.dumps({"beat": self._beat, **self._who})
        os.pwrite(file, text.encode().ljust(SIZE - 1) + b"\n", 0)
        os.fsync(file)

    def listed(self) -> dict[str, int]:
        """The last generation of every claimed prompt, by its key.

        Raises:
            UserError: the folder cannot be read.
        """
        found: dict[str, int] = {}
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UserError(f"run_dir: cannot read {self.folder}: {error.strerror}") from None
        for name in names:
            key, _, generation = name.rpartition(".")
            if key and generation.isdecimal():
                found[key] = max(found.get(key, 0), int(generation))
        return found

    @contextlib.contextmanager
    def taken(self, key: str, listed: Mapping[str, int]) -> Iterator[bool]:
        """Whether this worker has the prompt, for the time of the block.

        Args:
            key: of the prompt.
            listed: from `listed`, read a short time before.

        Raises:
            UserError: the folder cannot be read or written.
        """
        claim = self._take(key, listed.get(key))
        if claim is None:
            yield False
            return
        try:
            yield True
        finally:
            self._release(claim, key)

    def _take(self, key: str, last: int | None) -> Claim | None:
        if last is not None and not self.expired(self.folder / f"{key}.{last}"):
            return None
        generation = 0 if last is None else last + 1
        path = self.folder / f"{key}.{generation}"
        try:
            os.makedirs(self.folder, exist_ok=True)
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            if not self.folder.is_dir():
                raise UserError(f"run_dir: cannot write in {self.folder}: not a folder") from None
            return None
        except OSError as error:
            raise UserError(f"run_dir: cannot write in {self.folder}: {error.strerror}") from None
        claim = Claim(path, generation, file)
        # a full disk is told by the store, which loses more
        with self._lock, contextlib.suppress(OSError):
            self._claim = claim
            self._write(file)
        return claim

    def _release(self, claim: Claim, key: str) -> None:
        with self._lock:
            self._claim = None
            with contextlib.suppress(OSError):
                os.close(claim.file)
        # the earlier ones first: without the last, they would stand for the claim
        for generation in range(claim.generation + 1):
            with contextlib.suppress(OSError):
                (self.folder / f"{key}.{generation}").unlink()

    def expired(self, path: Path) -> bool:
        """Whether the owner of a claim is known to be dead, or has been silent for the lease as this worker saw it."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            self._seen.pop(path, None)
            # released; the next look at the folder tells
            return False
        except OSError:
            content = b""
        before = self._seen.get(path)
        now = self._clock()
        if before is None or before[0] != content:
            self._seen[path] = content, now
            return dead_here(parsed(content))
        return now - before[1] >= self.lease or dead_here(parsed(content))


def parsed(content: bytes) -> dict[str, Any]:
    """What a claim's file says; empty where it is being written, or damaged."""
    try:
        data = read_json(content)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def place() -> str:
    """What a process id counts in: this boot of this machine, and its process namespace; "" where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born(pid: int) -> int | None:
    """When a process of this machine began, in its own ticks; None for one that is not there or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def dead_here(claim: Mapping[str, Any]) -> bool:
    """Whether the owner was a process of this machine, and is not there any more."""
    if not claim.get("place") or claim["place"] != place() or not isinstance(claim.get("pid"), int):
        return False
    return born(claim["pid"]) != claim.get("born")
