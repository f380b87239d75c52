"""The bill beside the simulation, and the API's own reason for a miss."""

import json

import pytest

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.billed import compare
from kvbench.claude.misses import diagnose
from kvbench.claude.placements import as_sent
from kvbench.claude.recording.recorder import Recorder
from kvbench.claude.server import Engine, LoopbackServer
from kvbench.claude.traces.recorded import RecordedTrace

START = 1_795_500_000.0
BLOCK = {"tier": "system", "kind": "text", "type": "text", "hash": "07", "tokens": 5_733, "source": "usage"}


def line(number, t, usage=None, **fields):
    """A request of 5,733 tokens with automatic caching."""
    row = {
        "id": f"r{number}",
        "session": "s",
        "t": START + t,
        "model": "claude-sonnet-4-6",
        "blocks": [BLOCK],
    }
    return {**row, "automatic": "5m", **({"usage": usage} if usage else {}), **fields}


WRITE = {"read": 0, "write_5m": 5_733, "write_1h": 0, "uncached": 0, "output": 0}
READ = {"read": 5_733, "write_5m": 0, "write_1h": 0, "uncached": 0, "output": 0}


@pytest.fixture
def trace(tmp_path, prices):
    def write(*rows):
        path = tmp_path / "trace.jsonl"
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return RecordedTrace(path, prices)

    return write


def test_two_full_writes_are_billed_as_two(trace, prices):
    """2 x 5,733 tokens at 3.75 dollars per million are $0.0429975; by the rules the second is a read."""
    found = trace(line(1, 0, WRITE), line(2, 30, WRITE))
    bill = compare(found, prices)
    assert bill is not None
    assert (bill.totals.cost, bill.totals.read, bill.totals.write_5m, bill.requests) == (
        42_997_500,
        0,
        11_466,
        2,
    )
    assert bill.plain.cost == 2 * 5_733 * 3_000
    (only,) = bill.differences
    assert (only.request, only.billed.write_5m, only.modelled.read) == ("r2", 5_733, 5_733)
    assert only.cost == 5_733 * (3_750 - 300)
    assert "lives 270 s more; the API did not read it" in only.why
    # the doctor explains what was paid
    diagnosis = diagnose(found, as_sent, prices)
    assert (diagnosis.cost, diagnosis.perfect) == (42_997_500, 5_733 * (3_750 + 300))
    (finding,) = diagnosis.findings
    assert (finding.cause, finding.tokens, finding.cost) == ("billed, not explained", 5_733, 5_733 * 3_450)


def test_no_usage_no_bill(trace, prices):
    assert compare(trace(line(1, 0), line(2, 30)), prices) is None


def test_a_bill_that_the_rules_give_has_no_differences(trace, prices):
    bill = compare(trace(line(1, 0, WRITE), line(2, 30, READ), line(3, 60)), prices)
    assert bill is not None
    assert (bill.differences, bill.totals.requests, bill.requests) == ([], 2, 3)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([line(1, 0, READ)], "it read what no earlier request of this trace wrote"),
        ([line(1, 0, WRITE), line(2, 350, READ)], "the entry lived 50 s longer than its minimum lifetime"),
        ([line(1, 0, {**WRITE, "write_5m": 0, "uncached": 5_733})], "the API wrote less"),
        (
            [line(1, 0, {**WRITE, "write_5m": 0, "write_1h": 5_733})],
            "the same tokens were written with other lifetimes",
        ),
        (
            [line(1, 0, WRITE, ttft=60.0), line(2, 30, READ)],
            "it read an entry that by these assumptions it could not find",
        ),
    ],
)
def test_why_bill_and_rules_differ(trace, prices, rows, why):
    bill = compare(trace(*rows), prices)
    assert bill is not None
    assert [found.why.startswith(why) for found in bill.differences] == [True]


def test_the_open_point_that_gives_the_bill_is_named(trace, prices):
    """5,632 = 44 x 128 tokens read: what U8 turned gives."""
    rounded = {**READ, "read": 5_632, "uncached": 101}
    bill = compare(trace(line(1, 0, WRITE), line(2, 30, rounded)), prices)
    assert bill is not None
    assert bill.differences[0].why.endswith("as billed with U8 turned")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"speed": "ludicrous"}, "speed=ludicrous: allowed are standard, fast"),
        ({"speed": "fast"}, "claude-sonnet-4-6 has no fast mode"),
        ({"t": float("nan")}, "NaN is not a number of JSON"),
        ({"t": 1.7e12}, "t=1700000000000.0: must be seconds"),
        ({"t": 1.0}, "its first price is of 2026-02-17, the request is earlier"),
        ({"t": None}, "TypeError"),
        ({"ttft": -1}, "ttft=-1.0"),
        ({"ttft": float("inf")}, "Infinity is not a number of JSON"),
        ({"markers": [[-1, "5m"]]}, "markers=[[-1, '5m']]: the prompt has 1 blocks"),
        ({"markers": [[0, "2h"]]}, "KeyError"),
        ({"usage": {"read": 1.5}}, "must be whole numbers"),
        ({"blocks": [{**BLOCK, "tokens": True}]}, "whole numbers"),
        ({"blocks": 3}, "TypeError"),
        ({"model": 7}, "TypeError"),
        ({"duration": 10**400}, "OverflowError"),
        ({"session": []}, "session=[]: must be a text"),
    ],
)
def test_one_odd_line_is_a_row_and_the_rest_is_priced(trace, prices, fields, message):
    found = trace(line(1, 0, WRITE), {**line(2, 10), **fields}, line(3, 30, READ))
    assert [request.id for request in found.requests(Assumptions())] == ["r1", "r3"]
    (problem,) = found.problems.lines
    assert problem.startswith("trace.jsonl, line 2: ") and message in problem
    bill = compare(found, prices)
    assert bill is not None and bill.totals.cost == 5_733 * (3_750 + 300)


@pytest.mark.parametrize("odd", ["[]\n", "7\n", "null\n", '"x"\n', "{\n", "[" * 100_000 + "\n", "\ufffe\n"])
def test_a_line_that_is_no_request(trace, odd):
    found = trace(line(1, 0, WRITE), odd, line(3, 30, READ))
    assert len(list(found.requests(Assumptions()))) == 2
    assert [text.split(":")[0] for text in found.problems.lines] == ["trace.jsonl, line 2"]


def test_an_unusable_line_does_not_cost_the_lines_that_extend_it(trace):
    """Line 2 has a model without prices and adds a block; line 3 extends it. A stray copy of line 1 follows."""
    more = {**BLOCK, "tier": "messages", "hash": "08"}
    second = line(2, 10, model="claude-opus-99", same=1, blocks=[more])
    third = line(3, 20, same=2, blocks=[{**more, "hash": "09"}])
    stray = line(4, 25, speed="odd")
    fourth = line(5, 30, same=3, blocks=[{**more, "hash": "0a"}])
    found = trace(line(1, 0), second, third, stray, fourth)
    requests = list(found.requests(Assumptions()))
    assert [(request.id, request.head.index) for request in requests] == [("r1", 1), ("r3", 3), ("r5", 4)]
    assert requests[2].head.parent is requests[1].head
    assert len(found.problems.lines) == 2


def test_ids_that_come_twice_stay_apart(trace):
    found = trace(line(1, 0, WRITE), line(1, 30, READ))
    assert [request.id for request in found.requests(Assumptions())] == ["r1", "r1, line 2"]
    assert "line 2: its id r1 is used before" in found.problems.lines[0]


@pytest.fixture
def talk(tmp_path, prices):
    """Sends requests through the SDK to the loopback server and records them."""
    anthropic = pytest.importorskip("anthropic")
    recorder = Recorder(tmp_path / "talk.jsonl")
    ticks = iter(range(10_000))
    with LoopbackServer(Engine(prices, clock=lambda: START + 10 * next(ticks))) as server:
        sdk = anthropic.Anthropic(
            base_url=server.url,
            api_key="k",
            max_retries=0,
            middleware=[recorder.sync],
            default_headers=VERSION,
        )
        yield sdk, recorder


VERSION = {"anthropic-version": "2023-06-01"}


def ask(sdk, previous, stream=False, **changed):
    body = {
        "model": "claude-sonnet-4-6",
        "max_tokens": 5,
        "system": "rule " * 2_000,
        "messages": [{"role": "user", "content": "ask " * 2_000}],
        "cache_control": {"type": "ephemeral"},
        "diagnostics": {"previous_message_id": previous},
        **changed,
    }
    if stream:
        with sdk.messages.stream(**body) as events:
            return events.get_final_message()
    return sdk.messages.create(**body)


TOOL = {"name": "a", "description": "d", "input_schema": {"type": "object"}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        (
            {
                "messages": [
                    {"role": "user", "content": "ask " * 2_000},
                    {"role": "assistant", "content": "x"},
                    {"role": "user", "content": "y"},
                ]
            },
            None,
        ),
        ({"system": "law " * 2_000}, "system_changed"),
        ({"tools": [TOOL]}, "tools_changed"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools_changed"),
        ({"messages": [{"role": "user", "content": "other " * 2_000}]}, "messages_changed"),
        ({"model": "claude-opus-4-8"}, "model_changed"),
        ({"model": "claude-opus-4-8", "system": "law " * 2_000}, "model_changed"),
        ({"thinking": {"type": "adaptive"}}, "unavailable"),
    ],
)
def test_the_server_answers_the_reason_and_the_recording_keeps_it(talk, prices, changed, reason, stream):
    sdk, recorder = talk
    first = ask(sdk, None)
    assert first.diagnostics is None
    second = ask(sdk, first.id, stream, **changed)
    given = second.diagnostics.cache_miss_reason if second.diagnostics else None
    assert (given.type if given else None) == reason
    trace = RecordedTrace(recorder.path, prices)
    assert [request.api_reason for request in trace.requests(Assumptions())] == ["", reason or ""]
    diagnosis = diagnose(trace, as_sent, prices)
    if reason and diagnosis.findings:
        assert {(finding.api_reason, finding.agrees) for finding in diagnosis.findings} == {(reason, True)}
    if reason in ("system_changed", "messages_changed"):
        assert given.cache_missed_input_tokens >= 4_000


def test_an_unknown_previous_message_and_a_wrong_type(talk):
    import anthropic

    sdk, _ = talk
    answer = ask(sdk, "msg_nobody")
    assert answer.diagnostics.cache_miss_reason.type == "previous_message_not_found"
    with pytest.raises(anthropic.BadRequestError, match=r"diagnostics\.previous_message_id"):
        ask(sdk, 7)


def test_a_reason_that_contradicts_is_counted(trace, prices):
    said = {"diagnostics": {"cache_miss_reason": {"type": "tools_changed"}}}
    diagnosis = diagnose(trace(line(1, 0, WRITE), line(2, 30, WRITE, **said)), as_sent, prices)
    (finding,) = diagnosis.findings
    assert (finding.api_reason, finding.agrees) == ("tools_changed", False)
    assert finding.detail.endswith("the API says tools_changed")
