"""Which cells are done is known in little memory, and each look reads only what is new."""

import errno
import tracemalloc
from pathlib import Path

import pytest

from kvbench.config import files
from kvbench.config.errors import UserError
from kvbench.runs.follow import Follow
from kvbench.runs.store import Store

ROW = Store(Path(__file__).parents[2] / "results" / "quickstart").scan()[0][5]


@pytest.mark.parametrize("read", [lambda store: store.done(), lambda store: Follow(store).done])
def test_ids_are_read_without_the_rows(tmp_path, read):
    store, n = Store(tmp_path, worker="w"), 2000
    store.extend(ROW | {"cell": f"{number:016x}"} for number in range(n))
    size = store.path.stat().st_size
    tracemalloc.start()
    assert len(read(store)) == n
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 130 bytes a cell; the rows themselves take many times more than their text
    assert peak < 400 * n < size / 4


def test_a_look_reads_what_was_appended_and_leaves_a_torn_line_for_the_next(tmp_path):
    first, second = Store(tmp_path, worker="a"), Store(tmp_path, worker="b")
    first.append({"cell": "1"})
    follow = Follow(first)
    assert (follow.done, follow.failed, follow.look()) == ({"1"}, set(), (set(), set()))
    second.append({"cell": "2"})
    second.extend_failures([{"cell": "3"}])
    with open(first.path, "ab") as file:
        file.write(b'{"cell": "4", "sc')
    assert follow.look() == ({"2"}, {"3"}) and follow.look() == (set(), set())
    with open(first.path, "ab") as file:
        file.write(b'ore": 1}\n{"cell": "5"}\nnot json\n')
    assert follow.look() == ({"4", "5"}, set())
    first.append({"cell": "1"})  # a duplicate is nothing new
    assert follow.look() == (set(), set()) and follow.done == {"1", "2", "4", "5"}


def test_rows_that_were_taken_back_are_not_believed(tmp_path, monkeypatch):
    """A full disk: lines of a piece are there for a moment, and another worker reads them."""
    store, seen = Store(tmp_path, worker="a"), []
    store.append({"cell": "1"})
    store.extend_failures([{"cell": "9"}])
    follow = Follow(Store(tmp_path, worker="b"))
    real = files._put

    def half(handle, data):
        real(handle, data[: data.index(b"\n") + 5])
        seen.append(follow.look())
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(files, "_put", half)
    with pytest.raises(UserError, match="cannot write"):
        store.extend([{"cell": "2"}, {"cell": "3"}])
    assert seen == [({"2"}, set())] and "2" in follow.done
    follow.look()
    assert (follow.done, follow.failed, follow.taken_back) == ({"1"}, {"9"}, 1)
    assert follow.look() == (set(), set()) and follow.taken_back == 1
