"""Claims: one worker per prompt, takeover by the observer's own clock, and nothing lost where a claim is wrong."""

import json
import os
import subprocess
import sys
import threading

import pytest

from kvbench.config.errors import UserError
from kvbench.runs import claims as module
from kvbench.runs.claims import Claims, born, dead_here, parsed, place


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def worker(folder, name, clock=None, lease=60):
    claims = Claims(folder, name, lease, clock or Clock())
    # as on another machine, so that only the signs of life count
    claims._who["place"] = f"machine of {name}"
    return claims


def has(claims, key="p"):
    """Whether the worker gets the prompt; it lets go at once."""
    with claims.taken(key, claims.listed()) as have:
        return have


def test_only_one_worker_has_a_prompt_and_it_is_free_again_afterwards(tmp_path):
    a, b = worker(tmp_path, "a"), worker(tmp_path, "b")
    with a.taken("p", a.listed()) as mine:
        assert mine and not has(b) and has(b, "q")
        # what b read of the folder before a came does not help it
        with b.taken("p", {}) as stale:
            assert not stale
    assert has(b) and not list(a.folder.iterdir())


def test_a_silent_worker_is_taken_over_when_its_count_stood_still_for_the_lease(tmp_path):
    clock = Clock()
    a, b = worker(tmp_path, "a"), worker(tmp_path, "b", clock, lease=60)
    with a.taken("p", {}):
        assert not has(b)
        clock.now += 59
        a.beat()
        assert not has(b)  # it saw the count change
        clock.now += 59
        assert not has(b)
        clock.now += 1
        with b.taken("p", b.listed()) as mine:
            assert mine
            # the former owner's count is in a file of its own, and its end takes nothing from the new one
            a.beat()
            assert b.listed() == {"p": 1} and not has(worker(tmp_path, "c"))
    assert not b.listed()


def test_a_worker_that_counts_keeps_its_prompt_for_ever(tmp_path):
    clock = Clock()
    a, b = worker(tmp_path, "a"), worker(tmp_path, "b", clock)
    with a.taken("p", {}):
        for _ in range(20):
            assert not has(b)
            clock.now += 50
            a.beat()


@pytest.mark.parametrize("wall", [0.0, 1e12])
def test_no_wall_clock_counts(tmp_path, monkeypatch, wall):
    """Neither times in files nor times of files are compared: another machine's clock may say anything."""
    clock = Clock()
    a, b = worker(tmp_path, "a"), worker(tmp_path, "b", clock)
    monkeypatch.setattr("time.time", lambda: wall)
    with a.taken("p", {}):
        os.utime(tmp_path / "claims" / "p.0", (wall % 1e9, wall % 1e9))
        assert not has(b)
        clock.now += 59
        assert not has(b)
        clock.now += 1
        assert has(b)


def test_of_many_that_take_over_only_one_gets_the_prompt(tmp_path):
    with worker(tmp_path, "dead").taken("p", {}):
        clock = Clock()
        many = [worker(tmp_path, f"w{n}", clock) for n in range(8)]
        assert not any(map(has, many))
        clock.now += 60
        got, barrier, over = [], threading.Barrier(8), threading.Barrier(8)

        def take(claims):
            listed = claims.listed()
            barrier.wait()
            with claims.taken("p", listed) as have:
                got.append(have)
                over.wait()

        threads = [threading.Thread(target=take, args=[claims]) for claims in many]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert sorted(got) == [False] * 7 + [True]


@pytest.mark.parametrize(
    "content", [b"", b"not json", b'{"beat": 3', b"[1]", b"[" * 100_000, b'{"pid": "x"}', b"\xff"]
)
def test_a_damaged_claim_expires_as_any_other(tmp_path, content):
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "p.4").write_bytes(content)
    (tmp_path / "claims" / "a file of something else").write_bytes(b"")
    clock = Clock()
    b = worker(tmp_path, "b", clock)
    assert not has(b)
    clock.now += 60
    assert has(b) and b.listed() == {}


def test_a_dead_process_of_this_machine_is_known_at_once(tmp_path):
    source = (
        "import sys; from pathlib import Path; from kvbench.runs.claims import Claims; "
        "Claims(Path(sys.argv[1]), 'dead', 60)._take('p', None); import os; os.kill(os.getpid(), 9)"
    )
    process = subprocess.Popen([sys.executable, "-c", source, str(tmp_path)])
    # not waited for: a process that has ended and is still listed is dead too
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    claim = parsed((tmp_path / "claims" / "p.0").read_bytes())
    if not place():
        pytest.skip("this system does not say where process ids count")
    assert claim["pid"] == process.pid and dead_here(claim)
    assert has(Claims(tmp_path, "b", 60))
    process.wait()
    # a living process, one of another machine, one whose number was given again
    own = {"pid": os.getpid(), "place": place(), "born": born(os.getpid())}
    assert not dead_here(own) and dead_here({**own, "born": 1})
    assert (
        not dead_here({**claim, "place": "elsewhere"})
        and not dead_here({})
        and not dead_here({**claim, "place": ""})
    )


def test_the_count_goes_on_by_itself_and_says_what_is_done(tmp_path):
    with Claims(tmp_path, "w", lease=0.06) as claims, claims.taken("p", {}):
        claims.facts["prompt"] = "niah #3 " + "é" * 5
        first, beats = tmp_path / "claims" / "p.0", set()
        while len(beats) < 4:
            beats.add(parsed(first.read_bytes()).get("beat"))
        assert parsed(first.read_bytes())["prompt"].startswith("niah #3")
        claims.facts["prompt"] = "x" * 10_000  # never longer than the place for it
        claims.beat()
        assert len(first.read_bytes()) == module.SIZE and parsed(first.read_bytes())["worker"] == "w"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "claims").write_text("")
    with pytest.raises(UserError, match=r"^run_dir: cannot read [^\n]+claims: [^\n]+$"):
        has(worker(tmp_path, "a"))
    with pytest.raises(UserError, match=r"^run_dir: cannot write in [^\n]+claims: [^\n]+$"):
        worker(tmp_path, "a")._take("p", None)


def test_what_a_claim_holds_is_one_line_of_json(tmp_path):
    claims = worker(tmp_path, "a")
    with claims.taken("p", {}):
        (line,) = (tmp_path / "claims" / "p.0").read_text().splitlines()
        assert json.loads(line) == {**claims._who, "beat": 1}
