"""The one place that writes files: a file is replaced as a whole or stays as it was.

A new version is written beside the old one under a temporary name and renamed, so that a reader, a second writer, a
full disk or a killed process never meets half a file.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvbench.config.errors import UserError

if os.name == "posix":
    import fcntl

#: seconds by which another machine's draft is older than one that is written now before it is taken for abandoned
ABANDONED = 3600.0
# of a file's name in that of its draft: file systems allow 255 bytes
_LONGEST = 100


@contextlib.contextmanager
def writing(what: str | Path, key: str = "") -> Iterator[None]:
    """Turns a full disk, a read-only folder and the like into one line.

    Args:
        what: what is written, a path or what stands there.
        key: the setting that names it, for the message.

    Raises:
        UserError: something could not be written.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or " ".join(str(error).split())
        raise UserError(f"{key}: cannot write {what}: {why}".removeprefix(": ")) from None


def write(path: str | Path, content: str | bytes, key: str = "") -> Path:
    """Replaces a file; what was there stays until the new content is on disk. Folders are made.

    Args:
        path: the file; through a symbolic link, what it points to.
        content: the whole content; text becomes UTF-8.
        key: the setting that names the file, for messages.

    Returns:
        The path.

    Raises:
        UserError: it cannot be written, or is something else than a file.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with replacing(path, key) as draft, open(draft, "xb") as file:
        _put(file.fileno(), data)
    return Path(path)


@contextlib.contextmanager
def replacing(path: str | Path, key: str = "") -> Iterator[Path]:
    """A draft that replaces a file when the block ends, for what is written by others; as `write` does.

    Args:
        path: the file.
        key: the setting that names the file, for messages.

    Yields:
        The path of the draft, where the block is to make a file.

    Raises:
        UserError: it cannot be written, or is something else than a file.
    """
    with writing(path, key):
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise OSError("it is not a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(_draft_name(target.name))
        try:
            yield draft
            _remove_abandoned(target, draft)
            os.replace(draft, target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def append(path: str | Path, lines: Iterable[bytes]) -> None:
    """Appends lines to a file, all of them or none; on disk when this returns.

    Several processes may append to one file. A line that a killed process left incomplete keeps to itself.

    Args:
        path: the file; its folder must exist.
        lines: each with its line break.

    Raises:
        OSError: the file cannot be written; it is as it was.
    """
    data = b"".join(lines)
    if not data:
        return
    with open(path, "a+b", buffering=0) as file, _locked(file.fileno()):
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                data = b"\n" + data
        try:
            _put(file.fileno(), data)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), size)
            raise


def _put(descriptor: int, data: bytes) -> None:
    """Every byte that kvbench stores passes here."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Keeps other processes from appending, where the file system has locks."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    # closing the file unlocks it
    yield


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname()) or "-"


def _draft_name(name: str) -> str:
    return f".{name[:_LONGEST]}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def _remove_abandoned(target: Path, draft: Path) -> None:
    """Removes drafts of the same file whose processes were killed; without this one's own."""
    now = draft.stat().st_mtime
    form = re.compile(rf"\.{re.escape(target.name[:_LONGEST])}\.([^.]+)\.(\d{{1,9}})\.[0-9a-f]{{8}}\.tmp")
    for name in os.listdir(target.parent):
        found = form.fullmatch(name)
        if not found or name == draft.name:
            continue
        other = target.with_name(name)
        with contextlib.suppress(OSError):
            dead = found[1] == _host() and not _alive(int(found[2]))
            # both times are the file server's: no clocks of two machines are compared
            if dead or now - other.stat().st_mtime > ABANDONED:
                other.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
