"""Readers of files with usage: small files in each schema, as its sources describe it."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.claude.request import Usage
from kvbench.claude.usage.open import READERS, read_calls
from kvbench.claude.usage_json import read_usage
from kvbench.config.errors import UserError

SONNET = "claude-sonnet-4-6"
FAST = {"speed": "fast", "inference_geo": "us"}


def usage(read=0, five=0, hour=0, uncached=5, output=10, **fields):
    return {
        "input_tokens": uncached,
        "output_tokens": output,
        "cache_creation_input_tokens": five + hour,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour},
        **fields,
    }


def user(uuid, time, parent=None, **fields):
    message = {"role": "user", "content": "x"}
    base = {
        "type": "user",
        "uuid": uuid,
        "parentUuid": parent,
        "sessionId": "S",
        "timestamp": f"2026-11-20T{time}Z",
    }
    return {**base, "isSidechain": False, "message": message, **fields}


def answer(uuid, name, time, parent, spent, model=SONNET, **fields):
    message = {"id": name, "role": "assistant", "model": model, "content": [], "usage": spent}
    return {
        **user(uuid, time, parent),
        "type": "assistant",
        "message": message,
        "requestId": f"req_{name}",
        **fields,
    }


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_a_transcript(tmp_path, prices):
    rows = [
        {"type": "summary", "summary": "x", "leafUuid": "z"},
        user("u1", "10:00:00"),
        # one line per content block, with a usage that grows
        answer("a1", "m1", "10:00:05", "u1", usage(five=20_000, output=1)),
        answer("a2", "m1", "10:00:06", "a1", usage(five=20_000, output=300)),
        "{oops",
        user("u2", "10:01:00", "a2"),
        answer(
            "a3",
            "m2",
            "10:01:30",
            "u2",
            usage(20_000, 0, 1_000, speed="fast", inference_geo="us"),
            "claude-opus-5",
        ),
        {
            **user("c", "10:02:00"),
            "type": "system",
            "subtype": "compact_boundary",
            "compactMetadata": {"trigger": "auto"},
        },
        user("u3", "10:02:01", "c", isCompactSummary=True),
        answer("a4", "m3", "10:02:10", "u3", usage(4_000, server_tool_use={"web_search_requests": 2})),
        answer("a5", "m4", "10:02:11", "u3", usage(uncached=0, output=0), "<synthetic>"),
        answer("a6", "m5", "10:02:12", "u3", usage(), isApiErrorMessage=True),
        answer("a7", "m6", "10:02:13", "u3", usage(uncached=-1)),
        answer("a8", "m7", "10:02:14", "u3", usage(), "claude-opus-99"),
    ]
    write(tmp_path / "proj" / "S.jsonl", rows)
    side = [
        user("s1", "10:00:10", isSidechain=True, agentId="ab"),
        answer("s2", "n1", "10:00:12", "s1", usage(hour=9_000), isSidechain=True, agentId="ab"),
    ]
    write(tmp_path / "proj" / "S" / "subagents" / "agent-ab.jsonl.gz", side)
    # an older side chain, inside the file and without an id; and a resumed conversation with copies
    old = [
        user("x1", "10:00:11", isSidechain=True),
        answer("x2", "n2", "10:00:13", "x1", usage(), isSidechain=True),
        answer("x3", "n3", "10:00:14", "x2", usage(), isSidechain=True),
    ]
    write(tmp_path / "proj" / "T.jsonl", [{**row, "sessionId": "T"} for row in [*rows[1:4], *old]])
    found = read_calls(tmp_path, prices)
    calls = {call.id: call for call in found.calls if not call.copy}
    assert list(calls) == ["m1", "n1", "n2", "n3", "m2", "m3"]
    assert calls["m1"].usage == Usage(0, 20_000, 0, 5, 300)
    # a call starts when what it answers was written
    start = calls["m1"].t
    assert [call.t - start for call in calls.values()] == [0, 10, 11, 14, 60, 121]
    assert calls["m2"].usage == Usage(20_000, 0, 1_000, 5, 10)
    assert (calls["m2"].speed, calls["m2"].geo, calls["m2"].model) == ("fast", "us", "claude-opus-5")
    assert [calls[name].compacted for name in ("m1", "m2", "m3")] == [False, False, True]
    assert calls["m3"].server_tools == {"web_search_requests": 2}
    sessions = [calls[name].session for name in ("m1", "n1", "n2", "n3")]
    assert sessions == ["S", "S/ab", "T/x1", "T/x1"]
    assert [call.id for call in found.calls if call.copy] == ["m1"]
    assert [line.split(":")[0] for line in found.problems.lines] == [
        f"proj/S.jsonl, line {n}" for n in (5, 13, 14)
    ]
    assert "ccusage" in found.sources[0]


def spend(total=1_000, read=0, created=0, **fields):
    spent = {"cache_read_input_tokens": read, "cache_creation_input_tokens": created}
    base = {
        "request_id": f"r{total}",
        "startTime": "2026-11-20T10:00:00Z",
        "model": SONNET,
        "call_type": "acompletion",
    }
    base |= {
        "prompt_tokens": total,
        "completion_tokens": 7,
        "spend": 0.5,
        "session_id": "c",
        "cache_hit": "False",
    }
    return {**base, "metadata": json.dumps({"additional_usage_values": spent}), **fields}


def details(read, created, text, hour=0):
    split = {"ephemeral_5m_input_tokens": created - hour, "ephemeral_1h_input_tokens": hour}
    parts = {"cached_tokens": read, "cache_creation_tokens": created, "text_tokens": text}
    return {"usage_object": {"prompt_tokens_details": {**parts, "cache_creation_token_details": split}}}


def test_litellm_says_whether_input_contains_the_cached_tokens(tmp_path, prices):
    rows = [
        spend(total=1_000, read=800, created=100),
        spend(total=101, read=800, created=100),  # an early version
        spend(total=1_001, metadata=details(800, 100, 101, hour=40)),
        spend(total=1_002, metadata=details(800, 100, 1_002)),
        spend(total=1_003, startTime="2026-11-20T10:00:00"),
        spend(total=1_004, cache_hit="True"),
        spend(total=1_005, model="gpt-4o"),
        spend(total=1_006, status="failure"),
        spend(total=1_007, call_type="aretrieve_batch"),
        spend(total=1_008, startTime="yesterday"),
    ]
    (tmp_path / "logs.json").write_text(json.dumps(rows, indent=1))
    found = read_calls(tmp_path, prices)
    assert [call.usage for call in found.calls] == [
        Usage(800, 100, 0, 100, 7),
        Usage(800, 100, 0, 101, 7),
        Usage(800, 60, 40, 101, 7),
        Usage(800, 100, 0, 1_002, 7),
        Usage(0, 0, 0, 1_003, 7),
    ]
    assert [line for line in found.notes if "Calls with cached" in line] == [
        "Calls with cached tokens whose input tokens contain them: 2.",
        "Calls with cached tokens whose input tokens exclude them: 2.",
    ]
    assert sorted(found.left) == [
        "answered from litellm's own cache, not billed",
        "failed calls",
        "other models (gpt-4o)",
    ]
    assert ["row 9" in found.problems.lines[0], "row 10" in found.problems.lines[1]] == [True, True]
    assert [call.recorded_usd for call in found.calls] == [0.5] * 5
    for reading, uncached in (("with_cached", 100), ("without_cached", 1_000)):
        forced = read_calls(tmp_path, prices, input_tokens=reading)
        assert forced.calls[0].usage.uncached == uncached
    # the rows of the API's page and of JSON lines are the same
    texts = {
        "page.json": json.dumps({"data": rows, "total": 10}),
        "lines.jsonl": "\n".join(map(json.dumps, rows)),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert [c.usage for c in read_calls(tmp_path / name, prices).calls] == [c.usage for c in found.calls]


def span(total, read=None, created=None, **attributes):
    values = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": SONNET,
        "gen_ai.usage.input_tokens": total,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.conversation.id": "c",
        **attributes,
    }
    if read is not None:
        values |= {
            "gen_ai.usage.cache_read.input_tokens": read,
            "gen_ai.usage.cache_creation.input_tokens": created,
        }
    listed = [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in values.items()
    ]
    return {"spanId": f"{total:016x}", "startTimeUnixNano": "1795514400500000000", "attributes": listed}


def otlp(*spans):
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]}


def test_opentelemetry_spans(tmp_path, prices):
    first = otlp(
        span(1_000, 800, 100),
        span(101, 800, 100),  # a library that copies Anthropic's own figure
        span(5_000, **{"gen_ai.operation.name": "invoke_agent"}),
        span(6_000, **{"gen_ai.request.model": "gpt-4o"}),
        {"spanId": "1", "attributes": []},
        {"spanId": "2", "attributes": [{"key": "gen_ai.usage.input_tokens"}]},
    )
    again = otlp(span(1_002, **{"gen_ai.response.id": "m"}), span(1_003, **{"gen_ai.response.id": "m"}))
    write(tmp_path / "spans.jsonl.gz", [first, again, "{oops"])
    found = read_calls(tmp_path, prices)
    assert [call.usage for call in found.calls] == [
        Usage(800, 100, 0, 100, 7),
        Usage(800, 100, 0, 101, 7),
        Usage(0, 0, 0, 1_002, 7),
    ]
    assert found.calls[0].t == 1_795_514_400.5
    assert found.left == {
        "spans of invoke_agent": 1,
        "other models (gpt-4o)": 1,
        "spans without usage": 1,
        "spans of a call that another span has": 1,
    }
    assert "no 5m/1h split" in found.notes[-1]
    assert len(found.problems.lines) == 2
    forced = read_calls(tmp_path, prices, input_tokens="with_cached")
    assert "input_tokens=without_cached reads them apart" in "".join(forced.problems.lines)
    assert len(forced.calls) == 2


def test_recordings_and_files_of_other_formats_in_one_folder(tmp_path, prices):
    line = {"id": "r", "t": 1.7955e9, "session": "s", "model": SONNET, "blocks": [], "status": 200}
    spent = {"read": 1, "write_5m": 2, "write_1h": 3, "uncached": 4, "output": 5}
    rows = [
        {**line, "usage": spent, "server_tools": {"web_search_requests": 1}},
        {**line, "status": 400},
        line,
    ]
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "sessions-index.json", [{"version": 1, "entries": []}])
    write(tmp_path / "b.jsonl", [user("u", "10:00:00"), answer("a", "m", "10:00:01", "u", usage())])
    found = read_calls(tmp_path, prices)
    assert [(call.id, call.usage) for call in found.calls if call.id != "m"] == [
        ("a.jsonl: r", Usage(1, 2, 3, 4, 5))
    ]
    assert len(found.sources) == 2
    assert found.left == {"files of another format": 1}
    assert found.problems.lines == ["a.jsonl, line 3: it has no usage; this request is left out"]


def test_a_folder_without_usage_is_one_error(tmp_path, prices):
    with pytest.raises(UserError, match=r"no files \*\.jsonl, \*\.json below it"):
        read_calls(tmp_path, prices)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="give format=claude_code, recorded, litellm, opentelemetry"):
        read_calls(tmp_path, prices)
    write(
        tmp_path / "x.json", [user("u", "10:00:00"), answer("a", "m", "10:00:01", "u", usage(), "claude-9")]
    )
    with pytest.raises(UserError, match=r"no billed call could be read; x\.json, line 2: model=claude-9"):
        read_calls(tmp_path, prices)


def test_usage_with_iterations_is_their_sum():
    parts = [usage(100, 10, 0, 5, 1), usage(200, 0, 20, 6, 2)]
    found = read_usage({**usage(200, 0, 20, 6, 2), "iterations": parts})
    assert found.usage == Usage(300, 10, 20, 11, 3)
    assert found.notes == ()


def test_writes_without_a_split_count_as_5m():
    found = read_usage({"input_tokens": 1, "cache_creation_input_tokens": 9, "cache_read_input_tokens": None})
    assert (found.usage.write_5m, found.notes) == (9, ("no 5m/1h split reported; all writes count as 5m",))
    assert "do not add up" in read_usage({**usage(five=5), "cache_creation_input_tokens": 9}).notes[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(reader=st.sampled_from(sorted(READERS)), where=st.integers(0, 30), value=json_values)
def test_any_value_in_any_place_is_a_row_and_never_the_end(tmp_path_factory, prices, reader, where, value):
    """A field of a good line is replaced by anything; the other lines are still read."""
    good = {
        "claude_code": [user("u", "10:00:00"), answer("a", "m", "10:00:01", "u", usage())],
        "recorded": [
            {
                "id": "r",
                "t": 1.7955e9,
                "model": SONNET,
                "blocks": [],
                "usage": {"read": 0, "write_5m": 0, "write_1h": 0, "uncached": 4, "output": 5},
            }
        ],
        "litellm": [spend(total=1_000, metadata=details(800, 100, 100))],
        "opentelemetry": [otlp(span(1_000, 800, 100))],
    }[reader]
    odd = json.loads(json.dumps(good[-1]))
    places = list(fields(odd))
    holder, key = places[where % len(places)]
    holder[key] = value
    path = tmp_path_factory.mktemp("odd") / "x.jsonl"
    write(path, [*good, odd])
    found = read_calls(path, prices, format=reader)
    assert len(found.calls) >= 1


def fields(value):
    """Every (container, key) below a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from fields(inner)
