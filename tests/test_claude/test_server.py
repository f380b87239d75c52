"""The loopback server through the real SDK, and the recorder beside it: both agree with the simulator."""

import asyncio
import json

import pytest

anthropic = pytest.importorskip("anthropic")

from kvbench.claude import request_json, responder  # noqa: E402
from kvbench.claude.assumptions import Assumptions  # noqa: E402
from kvbench.claude.placements import as_sent  # noqa: E402
from kvbench.claude.recording.recorder import Recorder  # noqa: E402
from kvbench.claude.server import Engine, LoopbackServer  # noqa: E402
from kvbench.claude.simulate import Simulator  # noqa: E402
from kvbench.claude.traces.recorded import RecordedTrace  # noqa: E402
from kvbench.config.errors import UserError  # noqa: E402

MARK = {"type": "ephemeral"}
KEY = "sk-ant-secret-0123456789"
MODEL = "claude-sonnet-4-6"
LONG = "The quick brown fox jumps over the lazy dog. " * 200
TOOL = {"name": "look_up", "description": LONG[:900], "input_schema": {"type": "object", "properties": {}}}


class Clock:
    """A clock that only the test advances."""

    def __init__(self):
        self.now = 1.79e9

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def server(prices, clock):
    with LoopbackServer(Engine(prices, clock=clock)) as running:
        yield running


@pytest.fixture
def recorder(tmp_path, clock):
    return Recorder(tmp_path / "trace.jsonl", clock=clock)


def client(server, recorder=None, **options):
    middleware = [recorder.sync] if recorder else []
    return anthropic.Anthropic(
        base_url=server.url, api_key=KEY, max_retries=0, middleware=middleware, **options
    )


def request(turn=0, **fields):
    messages = [{"role": "user", "content": f"first question. {LONG}"}]
    for number in range(turn):
        messages += [
            {"role": "assistant", "content": [{"type": "text", "text": f"answer {number}"}]},
            {"role": "user", "content": [{"type": "text", "text": f"question {number}"}]},
        ]
    return {
        "model": MODEL,
        "max_tokens": 50,
        "tools": [TOOL],
        "system": [{"type": "text", "text": LONG, "cache_control": MARK}],
        "messages": messages,
        "cache_control": MARK,
        **fields,
    }


def reported(usage):
    split = usage.cache_creation
    return (
        usage.cache_read_input_tokens,
        split.ephemeral_5m_input_tokens,
        split.ephemeral_1h_input_tokens,
        usage.input_tokens,
    )


def simulated(path, prices, assumptions=None):
    simulator = Simulator(as_sent, prices, assumptions)
    trace = RecordedTrace(path, prices)
    usages = [simulator.feed(found).usage for found in trace.requests(assumptions or Assumptions())]
    assert trace.problems.lines == []
    return [(usage.read, usage.write_5m, usage.write_1h, usage.uncached) for usage in usages]


def test_simulator_and_server_agree_on_every_request(server, recorder, clock, prices):
    """Streamed or not, over gaps on both sides of the lifetimes, with both ttls, and a pre-warming request."""
    sdk = client(server, recorder)
    got = []
    gaps = [0, 60, 299, 301, 20, 3599, 5]
    for turn, gap in enumerate(gaps):
        clock.now += gap
        fields = request(turn, **({"max_tokens": 0} if turn == 0 else {}))
        if turn % 3 == 2:
            with sdk.messages.stream(**fields) as stream:
                got.append(reported(stream.get_final_message().usage))
        else:
            got.append(reported(sdk.messages.create(**fields).usage))
    assert got == simulated(recorder.path, prices)
    assert got[0][0] == 0
    assert got[1][0] > 0
    assert got[3][0] == 0
    assert [sum(usage) for usage in got] == [sum(usage) for usage in simulated(recorder.path, prices)]


def test_usage_fields_as_documented(server):
    usage = client(server).messages.create(**request()).usage
    assert usage.cache_creation_input_tokens == usage.cache_creation.ephemeral_5m_input_tokens > 0
    assert (usage.cache_read_input_tokens, usage.cache_creation.ephemeral_1h_input_tokens) == (0, 0)
    assert usage.output_tokens > 0


def test_count_tokens_is_the_total(server):
    sdk = client(server)
    fields = request()
    usage = sdk.messages.create(**fields).usage
    del fields["max_tokens"]
    assert sdk.messages.count_tokens(**fields).input_tokens == sum(reported(usage))


def test_the_server_never_pretends_to_be_claude(server):
    raw = client(server).messages.with_raw_response.create(**request())
    assert "not Claude" in raw.headers["x-answered-by"]
    assert raw.parse().id.startswith("msg_loopback")
    assert server.url.startswith("http://127.0.0.1:")


def test_error_bodies(server):
    sdk = client(server)
    texts = [{"type": "text", "text": f"part {k}", "cache_control": MARK} for k in range(5)]
    with pytest.raises(anthropic.BadRequestError) as error:
        sdk.messages.create(
            **request(messages=[{"role": "user", "content": texts}], system="", cache_control=None)
        )
    assert error.value.body["error"]["message"].endswith("Found 5.")
    assert error.value.body["error"]["type"] == "invalid_request_error"
    assert error.value.body["request_id"] == "req_loopback_1"
    with pytest.raises(anthropic.NotFoundError, match="nearest are claude-"):
        sdk.messages.create(**request(model="claude-sonet-4-6"))
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        sdk.messages.create(**request(extra_body={"temperature": 0.0}))
    pinned = client(server, default_headers={"anthropic-version": "2023-06-01"})
    pinned.messages.create(**request(extra_body={"temperature": 0.0}))


def test_tool_calls_stream(prices):
    call = {"type": "tool_use", "id": "t1", "name": "look_up", "input": {"query": "x"}}
    script = responder.in_turn([[call], [{"type": "text", "text": "done"}]])
    with LoopbackServer(Engine(prices, responder=script)) as server:
        with client(server).messages.stream(**request()) as stream:
            message = stream.get_final_message()
        assert (message.stop_reason, message.content[0].input) == ("tool_use", {"query": "x"})
        assert client(server).messages.create(**request()).content[0].text == "done"


def test_a_local_model_may_answer(prices):
    with LoopbackServer(Engine(prices, responder=responder.local(lambda text: text[-9:]))) as server:
        assert (
            client(server)
            .messages.create(**request(messages=[{"role": "user", "content": "say hello"}]))
            .content[0]
            .text
            == "say hello"
        )


def test_async_client(server, recorder, prices):
    async def run():
        sdk = anthropic.AsyncAnthropic(
            base_url=server.url, api_key=KEY, max_retries=0, middleware=[recorder.asynchronous]
        )
        first = await sdk.messages.create(**request())
        async with sdk.messages.stream(**request(1)) as stream:
            second = await stream.get_final_message()
        await sdk.close()
        return [reported(first.usage), reported(second.usage)]

    assert asyncio.run(run()) == simulated(recorder.path, prices)


def test_transport_fallback(server, recorder, prices):
    sdk = client(server, http_client=anthropic.DefaultHttpxClient(transport=recorder.transport()))
    got = [reported(sdk.messages.create(**request()).usage)]
    with sdk.messages.stream(**request(1)) as stream:
        got.append(reported(stream.get_final_message().usage))

    async def run():
        http = anthropic.DefaultAsyncHttpxClient(transport=recorder.async_transport())
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key=KEY, http_client=http) as sdk:
            return reported((await sdk.messages.create(**request(2))).usage)

    got.append(asyncio.run(run()))
    assert got == simulated(recorder.path, prices)


def test_fan_out_pays_for_every_copy(prices, clock, recorder):
    """R24 seen through HTTP: with 2 s to the first byte, requests at the same moment all write."""
    with LoopbackServer(Engine(prices, clock=clock, ttft=2.0)) as server:
        sdk = client(server)
        usages = [reported(sdk.messages.create(**request()).usage) for _ in range(3)]
        clock.now += 2
        usages.append(reported(sdk.messages.create(**request()).usage))
    assert [usage[0] > 0 for usage in usages] == [False, False, False, True]


@pytest.mark.parametrize("contents", [False, True])
def test_keys_and_contents_stay_out_of_the_trace(server, tmp_path, contents):
    recorder = Recorder(tmp_path / "t.jsonl", contents=contents)
    sdk = client(server, recorder, default_headers={"x-api-key": KEY})
    sdk.messages.create(**request(tool_choice={"type": "tool", "name": "look_up"}))
    with pytest.raises(anthropic.BadRequestError):
        sdk.messages.create(**request(extra_body={"temperature": 0.0}))
    text = recorder.path.read_text()
    assert KEY not in text
    assert "Bearer" not in text
    for words in ("quick brown fox", "first question", "look_up"):
        assert (words in text) == contents
    assert [json.loads(line)["status"] for line in text.splitlines()] == [200, 400]


def test_fields_of_a_trace_line(server, recorder, clock):
    sdk = client(server, recorder)
    with recorder.session("talk"):
        sdk.messages.create(**request())
        sdk.messages.create(
            **request(1, tool_choice={"type": "any"}, extra_headers={"anthropic-beta": "x-1"})
        )
    first, second = map(json.loads, recorder.path.read_text().splitlines())
    assert (first["id"], first["session"], first["t"], first["same"]) == ("talk/1", "talk", clock.now, 0)
    assert [(block["tier"], block["source"]) for block in first["blocks"]] == [
        ("tools", "estimate"),
        ("system", "estimate"),
        ("messages", "estimate"),
    ]
    assert (first["markers"], first["automatic"], first["params"]) == ([[1, "5m"]], "5m", {})
    assert (second["same"], len(second["blocks"])) == (3, 2)
    assert set(second["params"]) == {"messages", "model"}
    assert first["workspace"] == second["workspace"] == "w1"


def test_a_stream_that_is_abandoned_is_recorded(server, recorder):
    with client(server, recorder).messages.stream(**request()) as stream:
        next(iter(stream))
    line = json.loads(recorder.path.read_text())
    assert line["usage"]["write_5m"] > 0


def test_a_request_log_replayed_twice_gives_the_same_bytes(server, recorder, prices, tmp_path):
    sdk = client(server, recorder)
    for turn in range(3):
        sdk.messages.create(**request(turn))
    assert repr(simulated(recorder.path, prices)) == repr(simulated(recorder.path, prices))


def test_creating_a_recorder_sends_nothing(tmp_path):
    Recorder(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_bad_lines_of_a_recorded_trace(server, recorder, prices, clock):
    sdk = client(server, recorder)
    for turn in range(3):
        clock.now += 10
        sdk.messages.create(**request(turn))
    good = recorder.path.read_text().splitlines()
    row = json.loads(good[0])
    unknown = json.dumps({**row, "model": "claude-sonnet-46"})
    negative = json.dumps({**row, "blocks": [{**row["blocks"][0], "tokens": -1}]})
    missing = json.dumps(
        {**row, "blocks": [{key: value for key, value in row["blocks"][0].items() if key != "tokens"}]}
    )
    five = json.dumps({**row, "markers": [[0, "5m"]] * 5})
    order = json.dumps({**row, "markers": [[0, "5m"], [1, "1h"]], "automatic": None})
    back = json.dumps({**row, "id": "again", "t": row["t"] - 1})
    usage = json.dumps({**row, "usage": {"read": -4}})
    bad = ["{broken", unknown, negative, missing, five, order, usage]
    recorder.path.write_text("\n".join([*good[:1], *bad, *good[1:], back]) + "\n")
    trace = RecordedTrace(recorder.path, prices)
    assert len(list(trace.requests(Assumptions()))) == 4
    expected = [
        ("line 2", "JSONDecodeError"),
        ("line 3", "nearest are claude-sonnet-4-6"),
        ("line 4", "tokens=-1"),
        ("line 5", "KeyError: 'tokens'"),
        ("line 6", "breakpoints, at most 4"),
        ("line 7", "a 1h breakpoint (block 2) comes after a 5m one"),
        ("line 8", "usage="),
        ("line 11", "runs backwards"),
    ]
    assert len(trace.problems.lines) == len(expected)
    for line, (place, what) in zip(trace.problems.lines, expected, strict=True):
        assert place in line
        assert what in line
    with pytest.raises(UserError, match="no such file"):
        RecordedTrace(recorder.path.with_name("x"), prices)


def test_dated_and_plain_ids_of_a_model_share_a_cache(server, recorder, prices):
    sdk = client(server, recorder)
    for model in ("claude-opus-4-5", "claude-opus-4-5-20251101"):
        usage = sdk.messages.create(**request(model=model)).usage
    assert usage.cache_read_input_tokens > 0
    assert simulated(recorder.path, prices)[1][0] == usage.cache_read_input_tokens


@pytest.mark.parametrize("messages", [[{"role": "user", "content": []}], ["text"], [{"content": 3}]])
def test_malformed_requests_get_an_error_body(server, messages):
    with pytest.raises(anthropic.BadRequestError) as error:
        client(server).post(
            "/v1/messages",
            cast_to=object,
            body={"model": MODEL, "max_tokens": 5, "messages": messages},
        )
    assert error.value.body["error"]["type"] == "invalid_request_error"


def test_a_recorded_trace_can_be_replayed_as_an_experiment(server, recorder, clock, tmp_path):
    from kvbench.experiments.claude_replay.config import ReplayConfig
    from kvbench.experiments.claude_replay.report import write_report
    from kvbench.experiments.claude_replay.run import replay
    from kvbench.runs.progress import Progress

    sdk = client(server, recorder)
    for turn in range(3):
        clock.now += 30
        sdk.messages.create(**request(turn))
    with pytest.raises(anthropic.BadRequestError):
        sdk.messages.create(**request(extra_body={"temperature": 0.0}))
    cfg = ReplayConfig(run_dir=str(tmp_path / "out"), trace=str(recorder.path), doctor="as_sent")
    results = replay(cfg, Progress)
    costs = results.costs.set_index("placement")["cost_usd"]
    assert costs["planner"] <= costs["as_sent"] < costs["none"]
    assert results.diagnosis.findings == []
    assert "Rejected by the API: 1 request, " in results.notes[-1]
    assert write_report(cfg, results).exists()


@pytest.mark.parametrize("where", ["prefix", "uncached"])
def test_the_apis_own_tool_prompt_is_billed_and_agreed_on(prices, clock, tmp_path, where):
    """R21: 497 tokens with tools, 589 with a forced one, none without; both assumptions add up and are replayed."""
    assumptions = Assumptions(tool_prompt=where)
    engine = Engine(prices, clock=clock, assumptions=assumptions)
    recorder = Recorder(tmp_path / "t.jsonl", clock=clock)
    with LoopbackServer(engine) as server:
        asked = client(server, recorder)
        plain = request(tools=[])
        with_tools = {**request(), "cache_control": None}
        without = asked.messages.create(**plain).usage
        first = asked.messages.create(**with_tools).usage
        again = asked.messages.create(**with_tools).usage
        forced = asked.messages.create(**{**with_tools, "tool_choice": {"type": "any"}}).usage
        counted = asked.messages.count_tokens(
            **{name: value for name, value in with_tools.items() if name != "max_tokens"}
        )
    totals = [sum(reported(usage)) for usage in (without, first, again, forced)]
    tool = engine.counter.count(request_json.text_of(TOOL), MODEL)[0]
    assert totals[1] - totals[0] == tool + 497
    assert totals[2] == totals[1] == counted.input_tokens
    assert totals[3] - totals[2] == 589 - 497
    system = engine.counter.count(LONG, MODEL)[0]
    assert again.cache_read_input_tokens == tool + system + (497 if where == "prefix" else 0)
    assert simulated(recorder.path, prices, assumptions) == list(
        map(reported, (without, first, again, forced))
    )
