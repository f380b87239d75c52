"""Which loader a path gets, and recordings in folders, sub-folders and gzipped."""

import gzip
import json

import pytest

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.traces import sessions
from kvbench.claude.traces.open import open_trace
from kvbench.claude.traces.recorded import RecordedTrace
from kvbench.claude.usage.open import read_calls
from kvbench.config.errors import UserError

BASE = Assumptions()


def row(name, t, **fields):
    block = {"tier": "system", "kind": "text", "hash": "07", "tokens": 5_000, "source": "usage"}
    base = {
        "id": name,
        "t": t,
        "session": "s",
        "workspace": "w1",
        "model": "claude-sonnet-4-6",
        "blocks": [block],
    }
    return json.dumps({**base, **fields}) + "\n"


def test_recordings_of_a_folder_are_merged_by_time_and_kept_apart(tmp_path, prices):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a.jsonl").write_text(row("r1", 1.7955e9) + row("r2", 1.7955e9 + 20))
    (tmp_path / "deep" / "er" / "b.jsonl.gz").write_bytes(gzip.compress(row("r1", 1.7955e9 + 10).encode()))
    trace = open_trace(tmp_path, prices)
    assert isinstance(trace, RecordedTrace)
    found = list(trace.requests(BASE))
    assert [request.id for request in found] == ["a.jsonl: r1", "deep/er/b.jsonl.gz: r1", "a.jsonl: r2"]
    # two recorders name their workspaces alike
    assert [request.workspace for request in found] == [
        "a.jsonl: w1",
        "deep/er/b.jsonl.gz: w1",
        "a.jsonl: w1",
    ]
    assert found[0].head.cum == found[1].head.cum
    assert [request.id for request in open_trace(tmp_path / "a.jsonl", prices).requests(BASE)] == ["r1", "r2"]


def test_a_damaged_gzip_gives_what_stands_before_the_damage(tmp_path, prices):
    lines = "".join(row(f"r{n}", 1.7955e9 + n, note="x" * (n * 7919 % 997)) for n in range(2000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-1000])
    trace = open_trace(tmp_path / "a.jsonl.gz", prices)
    count = len(list(trace.requests(BASE)))
    assert 0 < count < 2000
    assert trace.problems.lines[-1].startswith(f"a.jsonl.gz: it cannot be read beyond line {count} (EOFError")


def test_the_former_name_of_a_format_is_explained(tmp_path, prices):
    sessions.write_sessions(tmp_path / "t", 1)
    assert len(list(open_trace(tmp_path / "t", prices, format="kv_cache_tester").requests(BASE))) == 2
    with pytest.raises(UserError, match="is a session of kv-cache-tester; give format=kv_cache_tester"):
        open_trace(tmp_path / "t", prices, format="claude_code")


def test_a_bill_of_a_trace_without_usage_says_what_prices_it(tmp_path, prices):
    sessions.write_sessions(tmp_path / "t", 1)
    with pytest.raises(UserError, match="is a session of kv-cache-tester; give format=kv_cache_tester"):
        read_calls(tmp_path / "t", prices, format="claude_code")
    with pytest.raises(
        UserError, match="kv_cache_tester holds prompts and no usage; experiment=claude_replay"
    ):
        read_calls(tmp_path / "t", prices)


@pytest.mark.parametrize("name", ["geo", "speed", "session", "workspace"])
def test_terms_that_are_no_text_are_a_defect_of_both_readers(tmp_path, prices, name):
    usage = {"read": 0, "write_5m": 5_000, "write_1h": 0, "uncached": 0, "output": 1}
    good = row("r1", 1.7955e9, usage=usage)
    (tmp_path / "a.jsonl").write_text(good + row("r2", 1.7955e9 + 9, **{"usage": usage, name: 5}))
    trace, calls = open_trace(tmp_path / "a.jsonl", prices), read_calls(tmp_path / "a.jsonl", prices)
    assert [request.id for request in trace.requests(BASE)] == ["r1"]
    wanted = [f"a.jsonl, line 2: {name}=5: must be a text; this request is left out"]
    assert trace.problems.lines == wanted
    assert calls.problems.lines == ([] if name == "workspace" else wanted)


def test_without_prices_every_model_and_any_day_will_do(tmp_path):
    """For load tests: a model of one's own, and times from the start of the trace."""
    (tmp_path / "a.jsonl").write_text(
        row("r1", 0.0, model="own-model") + row("r2", 2.5, speed="ludicrous") + row("r3", -1.0)
    )
    trace = open_trace(tmp_path / "a.jsonl", None)
    assert [(request.t, request.model) for request in trace.requests(BASE)] == [
        (0.0, "own-model"),
        (2.5, "claude-sonnet-4-6"),
    ]
    assert trace.problems.lines == [
        "a.jsonl, line 3: t=-1.0: must be seconds since 1970-01-01; this request is left out"
    ]


@pytest.mark.parametrize("text", ["", "{oops\n", "[1, 2]\n", '{"a": 1}\n', '"x"'])
def test_an_unknown_format_names_the_known_ones(tmp_path, prices, text):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match="give format=kv_cache_tester, claude_code, mooncake or recorded"):
        open_trace(tmp_path / "x.jsonl", prices)
