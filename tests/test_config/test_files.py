"""Files are replaced as a whole, or stay as they were."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from multiprocessing import get_context
from pathlib import Path

import pytest

from kvbench.config import files
from kvbench.config.errors import UserError
from kvbench.config.files import append, write

FULL = [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO]


def failing(number: int, after: int = 0):
    """`os.write` on a disk that takes some bytes and then fails."""
    room = [after]
    real = os.write

    def fail(descriptor: int, data) -> int:
        if not room[0]:
            raise OSError(number, os.strerror(number))
        done = real(descriptor, data[: room[0]])
        room[0] -= done
        return done

    return fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "table.md"
    for content, stored in (("a\u00e9\n", b"a\xc3\xa9\n"), (b"\0", b"\0"), ("lone \ud800", b"lone \\ud800")):
        assert write(path, content) == path
        assert path.read_bytes() == stored
        assert names(path.parent) == ["table.md"]


@pytest.mark.parametrize("number", FULL)
@pytest.mark.parametrize("after", [0, 3])
def test_a_full_or_read_only_disk_is_one_line_and_what_was_there_stays(tmp_path, monkeypatch, number, after):
    path = write(tmp_path / "table.md", "before")
    monkeypatch.setattr(os, "write", failing(number, after))
    with pytest.raises(UserError, match=rf"^key: cannot write [^\n]+/table\.md: {os.strerror(number)}$"):
        write(path, "after it", "key")
    with pytest.raises(OSError, match=os.strerror(number)):
        append(path, [b"a line\n"])
    monkeypatch.undo()
    assert path.read_text() == "before" and names(tmp_path) == ["table.md"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_every_step_may_fail(tmp_path, monkeypatch, call):
    path = write(tmp_path / "table.md", "before")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files if call == "open" else os, call, fail, raising=False)
    with pytest.raises(UserError, match=r"No space left on device$"):
        write(path, "after")
    monkeypatch.undo()
    assert path.read_text() == "before" and names(tmp_path) == ["table.md"]


def test_ctrl_c_while_writing_leaves_the_file(tmp_path, monkeypatch):
    path = write(tmp_path / "table.md", "before")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    for act in (lambda: write(path, "after"), lambda: append(path, [b"line\n"])):
        with pytest.raises(KeyboardInterrupt):
            act()
    monkeypatch.undo()
    assert path.read_text() == "before" and names(tmp_path) == ["table.md"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_limit_on_file_sizes_is_one_line(tmp_path):
    write(tmp_path / "table.md", "before")
    program = f"""
import resource, sys
from kvbench.config.files import append, write
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for act in (write, lambda path, text: append(path, [text.encode()])):
    try:
        act({str(tmp_path / "table.md")!r}, "x" * 1000)
    except (OSError, ValueError) as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("File too large") == 2 and len(done.stdout.splitlines()) == 2
    assert (tmp_path / "table.md").read_text() == "before" and names(tmp_path) == ["table.md"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100


@pytest.mark.parametrize("target", ["folder", "fifo"])
def test_what_is_no_file_is_not_replaced(tmp_path, target):
    path = tmp_path / target
    path.mkdir() if target == "folder" else os.mkfifo(path)
    with pytest.raises(UserError, match=rf"^cannot write [^\n]+/{target}: it is not a file$"):
        write(path, "x")
    assert not path.is_file()


def test_a_link_stays_one_and_the_mode_is_the_users(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "table.md")
    before = os.umask(0o027)
    try:
        write(tmp_path / "link", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "table.md").read_text() == "x"
    assert (tmp_path / "table.md").stat().st_mode & 0o777 == 0o640


def test_drafts_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path):
    program = f"""
import os, time
from kvbench.config.files import write
def wait(descriptor): print("here", flush=True); time.sleep(60)
os.fsync = wait
write({str(tmp_path / "table.md")!r}, "x" * 100)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    write(tmp_path / "table.md", "mine")
    (draft,) = tmp_path.glob("*.tmp")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    other = tmp_path / draft.name.replace(f".{files._host()}.", ".another-machine.")
    other.write_text("")
    old = tmp_path / other.name.replace("another", "third")
    old.write_text("")
    os.utime(old, (0, 0))
    write(tmp_path / "table.md", "mine")
    assert names(tmp_path) == sorted([other.name, "table.md"])
    write(tmp_path / "another.md", "mine")
    assert other.exists()


def test_readers_never_meet_half_a_file_while_two_write(tmp_path):
    path = write(tmp_path / "table.md", "a" * 10_000)
    writers = [
        threading.Thread(target=lambda text=text: [write(path, text * 10_000) for _ in range(20)])
        for text in "ab"
    ]
    for writer in writers:
        writer.start()
    found = set()
    while any(writer.is_alive() for writer in writers):
        found.add(path.read_text())
    for writer in writers:
        writer.join()
    assert found | {"a" * 10_000, "b" * 10_000} == {"a" * 10_000, "b" * 10_000}
    assert names(tmp_path) == ["table.md"]


def _append_many(path: str, text: str) -> None:
    for _ in range(20):
        append(path, [f"{text * 2000}\n".encode(), f"{text}\n".encode()])


def test_lines_of_two_processes_do_not_interleave(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("torn")
    context = get_context("fork")
    workers = [context.Process(target=_append_many, args=(str(path), text)) for text in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    first, *lines = path.read_text().splitlines()
    assert first == "torn" and len(lines) == 80
    assert set(lines) == {"a" * 2000, "a", "b" * 2000, "b"}
    assert all(low[0] == high[0] for low, high in zip(lines[::2], lines[1::2], strict=True))
