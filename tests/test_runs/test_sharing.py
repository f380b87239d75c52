"""Prompts are dealt: each to one worker, until nothing is left, whatever other workers do meanwhile."""

import pytest

from kvbench.config.errors import UserError
from kvbench.runs.claims import Claims
from kvbench.runs.config import load
from kvbench.runs.follow import Follow
from kvbench.runs.sharing import Item, Sharing, key_of, part_of
from kvbench.runs.store import Store

ITEMS = [Item(f"k{n}", frozenset({f"{n}a", f"{n}b"}), n) for n in range(5)]


class Worker:
    """A worker that finishes what it gets, and records it."""

    def __init__(self, folder, name, skipped=frozenset(), lease=60.0):
        self.store = Store(folder, worker=name)
        self.claims = Claims(folder, name, lease)
        self.others, self.pauses, self.got = 0, 0, []
        self.sharing = Sharing(ITEMS, Follow(self.store), skipped, self.claims, self.count, self.pause)

    def count(self, n):
        self.others += n

    def pause(self, seconds):
        self.pauses += 1
        if self.pauses > 50:
            raise TimeoutError

    def step(self):
        for what, cells in self.sharing:
            self.got.append((what, sorted(cells)))
            yield what
            self.store.extend({"cell": cell} for cell in sorted(cells))

    def work(self):
        return list(self.step())


def test_two_workers_have_each_prompt_once(tmp_path):
    a, b = Worker(tmp_path, "a"), Worker(tmp_path, "b")
    steps = [a.step(), b.step()]
    order = [next(steps[0]), next(steps[1]), next(steps[0]), next(steps[1]), next(steps[0])]
    assert order == [0, 1, 2, 3, 4]
    # b waits for the one that a has, and ends when it is done
    b.sharing._pause = lambda _: waits.append(list(steps[0]))
    waits: list[list[int]] = []
    assert list(steps[1]) == [] and waits == [[]]
    assert a.others == 4 and b.others == 6
    assert sorted(a.got + b.got) == [(n, [f"{n}a", f"{n}b"]) for n in range(5)]
    assert len(list(tmp_path.glob("cells-*.jsonl"))) == 2


def test_a_worker_waits_for_what_others_have_and_takes_over_what_they_leave(tmp_path):
    a = Worker(tmp_path, "a")
    b = Worker(tmp_path, "b")
    step = a.step()
    next(step)
    with pytest.raises(TimeoutError):
        b.work()
    assert [what for what, _ in b.got] == [1, 2, 3, 4] and b.pauses > 50
    # a dies inside the prompt: its claim is let go, nothing is stored
    step.close()
    c = Worker(tmp_path, "c")
    assert c.work() == [0]
    assert Store(tmp_path).done() == {cell for item in ITEMS for cell in item.cells}


def test_only_the_cells_that_are_left_are_dealt(tmp_path):
    Store(tmp_path).extend([{"cell": "0a"}, {"cell": "1a"}, {"cell": "1b"}])
    worker = Worker(tmp_path, "a", skipped={"2a"})
    assert worker.work() == [0, 2, 3, 4]
    assert worker.got[:2] == [(0, ["0b"]), (2, ["2b"])] and worker.others == 0


def test_rows_of_the_last_owner_are_seen_before_a_prompt_is_begun(tmp_path):
    a = Worker(tmp_path, "a")
    # stored after a looked, before it claims
    Store(tmp_path, worker="former").extend([{"cell": "0a"}, {"cell": "0b"}, {"cell": "3b"}])
    assert a.work() == [1, 2, 3, 4] and a.got[2] == (3, ["3a"]) and a.others == 3


def test_what_fails_in_one_worker_is_not_tried_by_the_next_and_a_retry_is_tried_once(tmp_path):
    Store(tmp_path, worker="before").extend_failures([{"cell": "0a"}])
    a, b = Worker(tmp_path, "a"), Worker(tmp_path, "b")  # both retry 0a
    for what, cells in a.sharing:
        failing, fine = cells & {"0a", "1b"}, cells - {"0a", "1b"}
        a.store.extend_failures({"cell": cell} for cell in failing)
        a.store.extend({"cell": cell} for cell in fine)
        a.got.append((what, sorted(cells)))
    assert a.got[0] == (0, ["0a", "0b"])
    assert b.work() == [] and b.others == 10


def test_what_another_worker_takes_back_is_done(tmp_path):
    """The rows of a worker whose disk is full were seen, and its prompt counted as done."""
    full = Store(tmp_path, worker="full")
    full.extend([{"cell": "4a"}])
    size = full.path.stat().st_size
    full.extend([{"cell": "0a"}, {"cell": "0b"}])
    worker = Worker(tmp_path, "a")
    got = []
    for what in worker.step():
        got.append(what)
        if what == 2:
            with open(full.path, "r+b") as file:
                file.truncate(size)
    assert got == [1, 2, 3, 4, 0] and Store(tmp_path).done() == {c for item in ITEMS for c in item.cells}


def test_a_shard_is_every_nth_prompt(tmp_path):
    base = ["experiment=quickstart", f"run_dir={tmp_path}"]
    parts = [part_of(ITEMS, load([*base, f"shard={n}/3"])) for n in (1, 2, 3)]
    assert [[item.what for item in part] for part in parts] == [[0, 3], [1, 4], [2]]
    assert part_of(ITEMS, load(base)) == ITEMS


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/", "/3", "a/b", "1/0", "-1/3"])
def test_a_wrong_shard_is_one_line(tmp_path, text):
    with pytest.raises(UserError, match=r"^shard: [^\n]+$"):
        load(["experiment=quickstart", f"run_dir={tmp_path}", f"shard={text}"])


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["workers=0"], "workers"),
        (["workers=2", "shard=1/2"], "shard"),
        (["lease=0"], "lease"),
        (["workers=many"], "workers"),
        (["stop_after=soon"], "stop_after"),
        (["stop_after=0s"], "stop_after"),
    ],
)
def test_a_wrong_setting_names_its_key(tmp_path, words, key):
    with pytest.raises(UserError, match=rf"^{key}: [^\n]+$"):
        load(["experiment=quickstart", f"run_dir={tmp_path}", *words])


def test_keys_differ_by_all_that_makes_a_prefill():
    base = ("m", "p", "query_aware")
    keys = {
        key_of(*base),
        key_of("x", "p", base[2]),
        key_of("m", "x", base[2]),
        key_of("m", "p", "query_agnostic"),
    }
    assert len(keys) == 4 and key_of(*base) in keys


def test_what_a_worker_tells_adds_up(tmp_path):
    claims, now = Claims(tmp_path, "a", 60.0), [5.0]
    sharing = Sharing(
        ITEMS, Follow(Store(tmp_path)), set(), claims, lambda n: None, lambda s: None, lambda: now[0]
    )
    now[0] = 7.5
    sharing.tell(100, 10)
    sharing.tell(50, 20)
    assert claims.facts == {"tokens": 150, "seconds": 2.5, "memory": 20}
