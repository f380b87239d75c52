"""Counting tokens, and what a response says about them."""

import gzip
import json

import pytest

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.recording.sse import Reply, decoded
from kvbench.claude.request import Usage, digest
from kvbench.claude.tokens import (
    CharCounter,
    FixtureCounter,
    ReconstructedCounter,
    best_counter,
    version_of,
    weakest,
)
from kvbench.claude.traces.recorded import RecordedTrace
from kvbench.config.errors import UserError


def test_characters():
    assert CharCounter().count("abcdefghi", "m") == (3, "estimate")
    assert CharCounter().count("検索する", "m") == (4, "estimate")


def test_a_fixture_comes_first(tmp_path):
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"claude-sonnet-4-6": {f"{digest('known'):016x}": 7}}))
    counter = best_counter(path)
    assert counter.count("known", "claude-sonnet-4-6") == (7, "fixture")
    assert counter.count("known", "claude-opus-5")[1] != "fixture"
    for bad, match in (("{", "counts="), ('{"m": {"a": -1}}', "negative"), ('{"m": 3}', "counts=")):
        path.write_text(bad)
        with pytest.raises(UserError, match=match):
            FixtureCounter.load(path)


def test_the_reconstructed_count_excludes_the_overhead_of_a_message():
    """The package counts a one-message request; the overhead of a message (7 here) is subtracted."""
    counter = ReconstructedCounter(lambda text, version: 7 + len(text.split()))
    assert counter.count("three short words", "claude-sonnet-4-6") == (3, "reconstructed")


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("claude-sonnet-4-6", "4.6"),
        ("claude-3-5-haiku-20241022", "3.5"),
        ("claude-opus-5", "5"),
        ("claude-sonnet-4-20250514", "4"),
    ],
)
def test_versions(model, version):
    assert version_of(model) == version


def test_the_weakest_label_wins():
    assert weakest({"usage", "estimate", "fixture"}) == "estimate"
    assert weakest({"usage", "scaled"}) == "scaled"
    assert weakest(set()) == "usage"


def usage(**fields):
    base = {"input_tokens": 5, "cache_read_input_tokens": 100, "output_tokens": 9}
    return json.dumps({"usage": {**base, **fields}}).encode()


def test_usage_of_a_plain_response():
    split = {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100}
    reply = Reply.parse(usage(cache_creation_input_tokens=248, cache_creation=split), 200)
    assert (reply.billed.usage, reply.notes) == (Usage(100, 148, 100, 5, 9), [])
    reply = Reply.parse(usage(cache_creation_input_tokens=None, cache_creation=None), 200)
    assert (reply.billed.usage, reply.notes) == (Usage(100, 0, 0, 5, 9), [])


def test_inconsistent_usage_is_noted_and_the_total_kept():
    split = {"ephemeral_5m_input_tokens": 1500, "ephemeral_1h_input_tokens": 500}
    reply = Reply.parse(usage(cache_creation_input_tokens=9000, cache_creation=split), 200)
    assert "do not add up: 1500 + 500 is not 9000" in reply.notes[0]
    assert reply.billed.usage.write_5m + reply.billed.usage.write_1h == 9000
    reply = Reply.parse(usage(cache_creation_input_tokens=40), 200)
    assert reply.billed.usage.write_5m == 40
    assert "no 5m/1h split" in reply.notes[0]


def test_a_stream_keeps_both_usage_events():
    start = {"input_tokens": 5, "cache_creation_input_tokens": 2000, "output_tokens": 1}
    start["cache_creation"] = {"ephemeral_5m_input_tokens": 1500, "ephemeral_1h_input_tokens": 500}
    delta = {"input_tokens": 5, "cache_creation_input_tokens": 9000, "output_tokens": 30}
    events = [
        {"type": "message_start", "message": {"usage": start}},
        {"type": "message_delta", "usage": delta},
    ]
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()
    reply = Reply.parse(body, 200)
    assert reply.events == [start, delta]
    assert "do not add up" in reply.notes[0]
    assert reply.billed.usage.output == 30


def test_compressed_and_unreadable_bodies():
    assert decoded(gzip.compress(b"text"), "gzip") == b"text"
    assert decoded(b"text", "") == b"text"
    assert Reply.parse(decoded(b"text", "unknown"), 200).notes == ["the response body could not be read"]


def test_errors_are_kept():
    body = json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}).encode()
    assert Reply.parse(body, 529).fields() == {"error": {"type": "overloaded_error", "message": "busy"}}


def line(name, same, blocks, usage, **fields):
    made = [
        {"tier": "messages", "kind": "text", "hash": f"{value:x}", "tokens": tokens, "message": 0}
        for value, tokens in blocks
    ]
    base = {"id": name, "session": "s", "t": 1.79e9, "model": "claude-sonnet-4-6", "same": same}
    return json.dumps({**base, "blocks": made, "usage": usage, **fields})


def test_counts_are_scaled_to_the_recorded_usage(tmp_path, prices):
    """Estimates of 1,000 and 500 become 1,200 up to the marker and 450 after it, as reported."""
    path = tmp_path / "t.jsonl"
    first = line("a", 0, [(1, 1000), (2, 500)], {"write_5m": 1200, "uncached": 450}, markers=[[0, "5m"]])
    second = line("b", 2, [(3, 100)], {"read": 1200, "uncached": 570}, markers=[[0, "5m"]], t=1.79e9 + 9)
    path.write_text(f"{first}\n{second}\n")
    one, two = RecordedTrace(path, prices).requests(Assumptions())
    assert [(block.tokens, block.source) for block in two.blocks] == [
        (1200, "scaled"),
        (450, "scaled"),
        (120, "scaled"),
    ]
    assert (one.head.tokens, two.head.tokens, two.source) == (1650, 1770, "scaled")
    plain = [
        request.head.tokens
        for request in RecordedTrace(path, prices, calibrate=False).requests(Assumptions())
    ]
    assert plain == [1500, 1600]


def test_a_line_that_extends_a_lost_one_is_reported(tmp_path, prices):
    path = tmp_path / "t.jsonl"
    whole = line("a", 0, [(1, 1000)], None, prompt="0" * 32)
    path.write_text(f"{whole}\n")
    trace = RecordedTrace(path, prices)
    assert list(trace.requests(Assumptions())) == []
    assert trace.problems.lines == [
        "t.jsonl, line 1: it extends a line that is missing or unreadable; this request is left out"
    ]
