"""What `kvbench status` says of a folder."""

import json

import pytest

from kvbench.cli import main as cli
from kvbench.report import console
from kvbench.report.console import status
from kvbench.report.run import load
from kvbench.runs.claims import Claims
from kvbench.runs.progress import clock
from kvbench.runs.schema import SCHEMA
from kvbench.runs.store import Store


def test_a_command_that_died_is_not_hidden_by_one_that_finished(tmp_path, accuracy):
    records = accuracy(tasks=("vt",), samples=2)
    store, half = Store(tmp_path), len(records) // 2
    cells = [(record["task"], record["method"], record["cell"]) for record in records]
    store.write_plan(cells[:half], {"seeds": 0}, "kvbench run quickstart 'seeds=[0]'")
    store.write_plan(cells[half:], {"seeds": 1}, "kvbench run quickstart 'seeds=[1]'")
    store.extend(records[half:])
    text = status(tmp_path)
    assert f"{len(records) - half} of {len(records)} cells done" in text
    (name,) = [plan.file for plan in store.planned().plans if "[0]" in plan.command]
    assert (
        f"unfinished: {half} of {half} cells of kvbench run quickstart 'seeds=[0]'; delete {name} to drop it"
        in text
    )
    assert load(tmp_path).notes()[0] == (f"incomplete run: {half} of {len(records)} planned cells missing")
    # dropped, the folder is complete
    (tmp_path / name).unlink()
    assert f"{len(records) - half} of {len(records) - half} cells done" in status(tmp_path)
    assert not any("incomplete" in note for note in load(tmp_path).notes())


@pytest.fixture
def twins(tmp_path, accuracy):
    """Two workers that both did the cells of one prompt."""
    records = accuracy(tasks=("vt",), samples=2)
    Store(tmp_path, worker="a").extend(records)
    Store(tmp_path, worker="b").extend(record | {"time": "later", "prefill_s": 9.0} for record in records[:5])
    return tmp_path, records


def test_rows_that_agree_are_duplicates_and_count_once(twins, capsys):
    folder, records = twins
    assert cli.main(["status", str(folder), "--check"]) == 0
    n = len(records)
    assert capsys.readouterr().out == (
        f"{n + 5} rows in 2 files (schema {SCHEMA}: {n + 5}), {n} cells, 5 duplicates, 0 conflicts\n"
    )
    assert f"{n} cells done" in status(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"output_ids": [1, 2]}, "output_ids"),
        ({"score": 0.123}, "score"),
        ({"score": None}, "score"),
        ({"kl_to_dense": 2e-4}, "kl_to_dense"),
        ({"bytes_resident": 10**7}, "bytes_resident"),
        ({"kl_to_dense": 0.9e-4}, ""),
        ({"compress_s": 9.0, "peak_bytes": 1, "commit": "x"}, ""),
    ],
)
def test_rows_that_contradict_are_named_and_the_first_file_counts(twins, capsys, change, named):
    folder, records = twins
    first = records[0] | {"kl_to_dense": 0.0, "cell": "new"}
    Store(folder, worker="c").append(first)
    Store(folder, worker="d").append(first | change)
    assert cli.main(["status", str(folder), "--check"]) == bool(named)
    out = capsys.readouterr().out
    line = f"conflict: new: {named} in cells-d.jsonl differ from cells-c.jsonl, whose row counts\n"
    assert (line in out) == bool(named) and f"{int(bool(named))} conflict" in out
    assert {row["cell"]: row for row in Store(folder).scan()[0]}["new"]["score"] == first["score"]


def test_compaction_keeps_every_cell_once(twins, capsys):
    folder, records = twins
    before = Store(folder).scan()[0]
    assert cli.main(["status", str(folder), "--compact"]) == 0
    (file,) = folder.glob("cells-*")
    assert capsys.readouterr().out == f"{len(records)} cells of 2 files in {file.name}\n"
    after = Store(folder).scan()[0]
    assert sorted(after, key=lambda row: row["cell"]) == sorted(before, key=lambda row: row["cell"])
    assert len(file.read_text().splitlines()) == len(records)


def test_compaction_waits_for_workers_and_refuses_conflicts(twins, capsys):
    folder, records = twins
    claims = Claims(folder, "w", 60)
    claims.facts |= {"prompt": "vt 2048 #3", "done": 7}
    with claims.taken("p", {}):
        assert cli.main(["status", str(folder), "--compact"]) == 2
        assert "kvbench: error: run: 1 prompt claimed in " in capsys.readouterr().err
        one = {"worker": "w", "prompt": "vt 2048 #3", "beat": 1, "done": 7, "dead": False}
        one |= dict.fromkeys(("tokens", "seconds", "memory"))
        assert console.overview_of(folder)["working"] == [one]
        text, workers = console.watched(folder, [])
        assert text.endswith("working: w on vt 2048 #3, 7 cells done, alive") and workers == [one]
        assert console.watched(folder, workers)[0].endswith("silent")
        claims.beat()
        assert console.watched(folder, workers)[0].endswith("alive")
    Store(folder, worker="z").append(records[0] | {"score": 0.5})
    assert cli.main(["status", str(folder), "--compact"]) == 2
    assert len(list(folder.glob("cells-*"))) == 3


def test_status_as_json_and_watched_to_the_end(twins, capsys):
    folder, records = twins
    cells = [(record["task"], record["method"], record["cell"]) for record in records]
    Store(folder).write_plan(cells, {"x": 1}, "kvbench run x")
    assert cli.main(["status", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["done"], found["planned"], found["failed"], found["complete"]) == (
        *[len(records)] * 2,
        0,
        True,
    )
    assert cli.main(["status", str(folder), "--watch", "1"]) == 0
    assert "cells done" in capsys.readouterr().out
    assert cli.main(["status", str(folder), "--watch", "0"]) == 2
    assert cli.main(["status", "--check"]) == 2
    Store(folder).write_plan([*cells, ("vt", "m", "missing")], {"x": 2}, "kvbench run y")
    assert cli.main(["status", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["complete"] and [one["missing"] for one in found["unfinished"]] == [1]


def test_the_time_that_is_left_is_that_of_the_workers_that_live(tmp_path, accuracy):
    records = accuracy(tasks=("vt",), samples=2)
    store, half = Store(tmp_path), len(records) // 2
    store.write_plan([(r["task"], r["method"], r["cell"]) for r in records], {"a": 1})
    store.extend(records[:half])
    claims = Claims(tmp_path, "one", 60.0)
    with claims.taken("k", {}) as have:
        assert have
        assert "left: about" not in console.watched(tmp_path, [])[0]
        claims.facts |= {"done": 10, "tokens": 5000, "seconds": 2.0, "memory": 3 * 10**9, "prompt": "vt #0"}
        claims.beat()
        text, workers = console.watched(tmp_path, [])
        assert "working: one on vt #0, 10 cells done, 2,500 tokens/s, 3.0 GB, alive" in text
        # five cells a second
        left = (len(records) - half) / 5
        assert f"left: about {clock(left)}" in text
        assert console.overview_of(tmp_path)["seconds_left"] == pytest.approx(left)
        assert console.seconds_left(100, [*workers, *workers]) == pytest.approx(10)
        assert console.seconds_left(100, [workers[0] | {"dead": True}]) is None
    assert console.overview_of(tmp_path)["seconds_left"] is None
