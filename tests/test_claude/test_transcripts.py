"""Replay of Claude Code's transcripts: prompts put together again, with an assumed system prompt and tools."""

import json

import pytest

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.billed import compare
from kvbench.claude.misses import diagnose
from kvbench.claude.placements import as_sent, named
from kvbench.claude.request import Usage
from kvbench.claude.traces.open import open_trace
from kvbench.claude.traces.transcripts import ASSUMED, TranscriptTrace
from kvbench.config.errors import UserError

BASE = Assumptions()
MODEL = "claude-opus-4-8"


def line(uuid, parent, time, kind="user", **fields):
    return {
        "type": kind,
        "uuid": uuid,
        "parentUuid": parent,
        "sessionId": "S",
        "timestamp": f"2026-11-20T10:{time}Z",
        **fields,
    }


def user(uuid, parent, time, content, **fields):
    return line(uuid, parent, time, message={"role": "user", "content": content}, **fields)


def answer(uuid, parent, time, name, content, read=0, five=0, hour=0, uncached=4, output=50, **fields):
    usage = {
        "input_tokens": uncached,
        "output_tokens": output,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": five + hour,
        "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour},
    }
    message = {"id": name, "role": "assistant", "model": MODEL, "content": content, "usage": usage}
    return line(uuid, parent, time, "assistant", message=message, **fields)


def text(words):
    return [{"type": "text", "text": "word " * words}]


def call(name):
    return {"type": "tool_use", "id": name, "name": "Read", "input": {"path": name}}


def result(name, size=400):
    return [{"type": "tool_result", "tool_use_id": name, "content": "line " * size}]


def conversation():
    """Two parallel tool calls, whose results hang from different lines; then a question in the same conversation."""
    return [
        {"type": "summary", "summary": "x", "leafUuid": "z"},
        user("u1", None, "00:00", "please " * 400),
        answer("a1", "u1", "00:04", "m1", text(80), five=20_000),
        answer("a2", "a1", "00:05", "m1", [call("t1")], five=20_000),
        answer("a3", "a2", "00:06", "m1", [call("t2")], five=20_000, output=200),
        user("r1", "a2", "00:07", result("t1")),
        user("r2", "a3", "00:08", result("t2")),
        answer("b1", "r2", "00:12", "m2", text(200), read=20_000, five=1_200, output=220),
        user("u2", "b1", "01:00", "and now " * 100),
        answer("c1", "u2", "01:05", "m3", text(50), read=21_200, five=500),
    ]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "proj" / "S.jsonl", conversation())
    return tmp_path


def types(request):
    return [block.type for block in request.blocks]


def test_prompts_grow_by_what_was_said_and_add_up_to_the_bill(folder, prices):
    trace = open_trace(folder, prices)
    assert isinstance(trace, TranscriptTrace)
    first, second, third = trace.requests(BASE)
    assert types(first) == [ASSUMED, "text"]
    assert types(second) == [*types(first), "text", "tool_use", "tool_use", "tool_result", "tool_result"]
    assert types(third) == [*types(second), "text", "text"]
    for request in (first, second, third):
        assert request.usage is not None
        assert request.head.tokens + request.tail == request.usage.total
    # 20,000 + 4 reported, the message has 700 by estimate; its uncached end is no block
    assert trace.assumed == {"proj/S.jsonl: S": 20_004 - 700}
    assert [request.tail for request in (first, second, third)] == [4, 4, 4]
    # each begins with the one before
    nodes = third.head
    found = set()
    while nodes is not None:
        found.add(nodes.cum)
        nodes = nodes.parent
    assert {first.head.cum, second.head.cum} <= found


def test_the_rules_give_what_was_billed_and_every_placement_can_be_replayed(folder, prices):
    trace = open_trace(folder, prices)
    bill = compare(trace, prices)
    assert bill is not None
    assert (bill.requests, bill.differences) == (3, [])
    assert bill.totals.read == 41_200
    assert diagnose(trace, as_sent, prices).causes() == {}
    findings = diagnose(trace, named("none"), prices).findings
    assert {finding.cause for finding in findings} == {"no cache_control"}


def test_a_gap_is_an_expiry(folder, prices):
    rows = conversation()
    for row in rows[-2:]:
        row["timestamp"] = row["timestamp"].replace("10:01", "10:21")
    rows[-1]["message"]["usage"] |= {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 21_700}
    rows[-1]["message"]["usage"]["cache_creation"]["ephemeral_5m_input_tokens"] = 21_700
    write(folder / "proj" / "S.jsonl", rows)
    trace = open_trace(folder, prices)
    diagnosis = diagnose(trace, as_sent, prices)
    assert [(finding.cause, finding.tokens) for finding in diagnosis.findings] == [("expired", 21_200)]
    assert sum(finding.cost for finding in diagnosis.findings) == diagnosis.cost - diagnosis.perfect


def test_a_branch_leaves_out_what_was_taken_back(folder, prices):
    rows = [
        *conversation(),
        user("v2", "b1", "02:00", "rather " * 100),
        answer("d1", "v2", "02:05", "m4", text(50), read=21_200, five=300),
    ]
    write(folder / "proj" / "S.jsonl", rows)
    *_, third, fourth = open_trace(folder, prices).requests(BASE)
    assert types(fourth) == types(third)
    assert fourth.head.parent.cum == third.head.parent.cum
    assert fourth.head.cum != third.head.cum


def test_compaction_sub_agents_and_copies(folder, prices):
    rows = [
        *conversation(),
        line("k", None, "03:00", "system", subtype="compact_boundary", logicalParentUuid="c1"),
        user("u3", "k", "03:01", "summary " * 300, isCompactSummary=True),
        answer("e1", "u3", "03:09", "m5", text(20), read=19_000, hour=700),
        answer("e2", "u3", "03:10", "m6", [], uncached=0, output=0),
        answer("e3", "u3", "03:11", "m7", [], isApiErrorMessage=True),
    ]
    write(folder / "proj" / "S.jsonl", rows)
    side = [
        user("s1", None, "00:20", "look " * 50, isSidechain=True, agentId="ab"),
        answer("s2", "s1", "00:25", "n1", text(9), hour=9_000, isSidechain=True, agentId="ab"),
    ]
    write(folder / "proj" / "S" / "subagents" / "agent-ab.jsonl", side)
    # a resumed conversation has copies of the answers before it
    write(folder / "proj" / "T.jsonl", [{**row, "sessionId": "T"} for row in conversation()])
    trace = open_trace(folder, prices)
    found = {request.id.split(": ")[1]: request for request in trace.requests(BASE)}
    assert set(found) == {"m1", "m2", "m3", "m5", "n1"}
    assert types(found["m5"]) == [ASSUMED, "text"]
    assert found["n1"].session != found["m1"].session
    assert [ttl for _, ttl in found["m5"].markers] == [3600, 3600]
    assert [ttl for _, ttl in found["m3"].markers] == [300, 300]
    assert trace.problems.lines == []
    # replaying again gives the same
    assert [request.id for request in trace.requests(BASE)] == [
        request.id for request in trace.requests(BASE)
    ]


def test_odd_lines_are_rows(folder, prices):
    rows = [json.dumps(row) for row in conversation()]
    rows[5] = "{oops"
    rows.append(json.dumps(answer("x", "u2", "05:00", "m9", text(5), uncached=-3)))
    rows.append(json.dumps({**answer("y", "u2", "05:01", "m10", text(5)), "timestamp": "yesterday"}))
    rows.append(json.dumps(answer("z", "u2", "05:02", "m11", 7) | {"parentUuid": ["u"]}))
    (folder / "proj" / "S.jsonl").write_text("\n".join(rows) + "\n")
    trace = open_trace(folder, prices)
    names = [request.id for request in trace.requests(BASE)]
    assert names[:3] == [f"proj/S.jsonl: m{n}" for n in (1, 2, 3)]
    assert [entry.split(":")[0] for entry in trace.problems.lines][:3] == [
        f"proj/S.jsonl, line {n}" for n in (6, 11, 12)
    ]
    with pytest.raises(UserError, match="line 6"):
        list(open_trace(folder, prices, strict=True).requests(BASE))


def test_thinking_of_earlier_turns_is_sent_only_to_models_that_keep_it(folder, prices):
    thought = [{"type": "thinking", "thinking": "hm " * 100, "signature": "s"}]
    rows = conversation()
    rows[2]["message"]["content"] = thought
    for model, kept in ((MODEL, [1, 1]), ("claude-sonnet-4-5-20250929", [1, 0])):
        for row in rows:
            if row["type"] == "assistant":
                row["message"]["model"] = model
        write(folder / "proj" / "S.jsonl", rows)
        _, second, third = open_trace(folder, prices).requests(BASE)
        assert [types(request).count("thinking") for request in (second, third)] == kept


def test_usage_is_that_of_the_last_line(folder, prices):
    first = next(iter(open_trace(folder, prices).requests(BASE)))
    assert first.usage == Usage(0, 20_000, 0, 4, 200)
