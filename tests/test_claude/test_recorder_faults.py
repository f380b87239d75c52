"""The recorder never breaks its host: a fault is one warning, the call's own result or error passes."""

import gzip
import json
import os
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

anthropic = pytest.importorskip("anthropic")
httpx2 = pytest.importorskip("httpx2")

from kvbench.claude.assumptions import Assumptions  # noqa: E402
from kvbench.claude.recording.recorder import Recorder  # noqa: E402
from kvbench.claude.recording.sse import Reply, decoded  # noqa: E402
from kvbench.claude.server import Engine, LoopbackServer  # noqa: E402
from kvbench.claude.traces.recorded import RecordedTrace  # noqa: E402

MODEL = "claude-sonnet-4-6"
MESSAGE = {
    "id": "m", "type": "message", "role": "assistant", "model": MODEL, "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn", "stop_sequence": None,
}  # fmt: skip


@pytest.fixture
def server(prices):
    with LoopbackServer(Engine(prices, clock=lambda: 1.79e9)) as running:
        yield running


def client(recorder, handler=None, url="http://loopback.invalid"):
    options = {}
    if handler is not None:
        options["http_client"] = anthropic.DefaultHttpxClient(transport=httpx2.MockTransport(handler))
    return anthropic.Anthropic(
        base_url=url, api_key="k", max_retries=0, middleware=[recorder.sync], **options
    )


def ask(sdk, **fields):
    return sdk.messages.create(
        model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "x"}], **fields
    )


def test_a_missing_folder_is_one_warning(server, tmp_path):
    recorder = Recorder(tmp_path / "none" / "t.jsonl")
    with pytest.warns(RuntimeWarning, match="the call itself is not affected .FileNotFoundError") as found:
        assert ask(client(recorder, url=server.url)).content[0].text
    assert len(found) == 1


def test_where_warnings_are_errors_the_call_passes_too(server, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ask(client(Recorder(tmp_path / "none" / "t.jsonl"), url=server.url)).content[0].text


def test_a_full_disk_loses_its_own_lines_only(server, tmp_path, prices, monkeypatch):
    """A line that is cut off is not kept; those before and after it are read, and build on no lost one."""
    recorder = Recorder(tmp_path / "t.jsonl", clock=lambda: 1.79e9)
    sdk = client(recorder, url=server.url)
    ask(sdk)
    room = [50]

    def write(descriptor, data):
        if not room.pop():
            raise OSError(28, "No space left on device")
        room.append(0)
        return real(descriptor, data[:50])

    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.warns(RuntimeWarning, match="No space left"):
            assert ask(sdk).content[0].text
    ask(sdk)
    trace = RecordedTrace(recorder.path, prices)
    assert [request.id for request in trace.requests(Assumptions())] == ["request/1", "request/3"]
    assert not trace.problems.lines


def test_the_hosts_own_error_passes(tmp_path):
    def broken(request):
        raise httpx2.ConnectError("no route")

    def refused(request):
        return httpx2.Response(
            400, json={"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
        )

    with pytest.raises(anthropic.APIConnectionError):
        ask(client(Recorder(tmp_path / "t.jsonl"), broken))
    with (
        pytest.raises(anthropic.BadRequestError),
        pytest.warns(RuntimeWarning, match="recorder lost a request"),
    ):
        ask(client(Recorder(tmp_path / "none" / "t.jsonl"), refused))


def test_a_counter_or_clock_that_fails_is_harmless(tmp_path):
    class Bad:
        def count(self, text, model):
            raise ZeroDivisionError

    recorder = Recorder(tmp_path / "t.jsonl", counter=Bad())
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
        assert (
            ask(client(recorder, lambda request: httpx2.Response(200, json={**MESSAGE, "usage": USAGE}))).id
            == "m"
        )


USAGE = {"input_tokens": 3, "output_tokens": 2}


def test_the_response_is_the_authority_on_the_terms(tmp_path, prices):
    """Asked for fast and us; served as standard, in batch, with searches: as the usage says, so it is priced."""
    terms = {"speed": "standard", "inference_geo": "global", "service_tier": "batch"}
    spent = {**USAGE, **terms, "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 0}}
    recorder = Recorder(tmp_path / "t.jsonl", clock=lambda: 1.79e9)
    sdk = client(recorder, lambda request: httpx2.Response(200, json={**MESSAGE, "usage": spent}))
    ask(sdk, extra_body={"speed": "fast", "inference_geo": "us"})
    line = json.loads(recorder.path.read_text())
    assert (line["speed"], line["geo"], line["service_tier"], line["batch"]) == (
        "standard",
        "global",
        "batch",
        True,
    )
    assert line["server_tools"] == {"web_search_requests": 3}
    (request,) = RecordedTrace(recorder.path, prices).requests(Assumptions())
    # half of 3 base and 15 output, and 0.01 USD per search
    assert prices.cost(request, request.usage) == (3 * 1_500, 2 * 7_500 + 30_000_000)


def test_a_damaged_gzip_is_a_note():
    whole = gzip.compress(json.dumps({**MESSAGE, "usage": USAGE}).encode())
    assert decoded(whole, "gzip").startswith(b"{")
    for data in (whole[:-12], whole[:8] + b"\0" * 30, b"", b"no gzip"):
        assert Reply.parse(decoded(data, "gzip"), 200).billed is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
fields = "input_tokens cache_creation server_tool_use speed iterations service_tier".split()
usages = st.dictionaries(st.sampled_from(fields), json_values)


@given(
    usage=json_values | usages, kind=st.sampled_from(["json", "start", "delta", "error"]), extra=json_values
)
def test_any_response_can_be_read(usage, kind, extra):
    """Whatever a response holds, reading it raises nothing, and what it gives fits in a line of JSON."""
    content = {
        "json": {"usage": usage, "diagnostics": extra},
        "start": {"type": "message_start", "message": {"usage": usage, "diagnostics": extra}},
        "delta": {"type": "message_delta", "usage": usage, "diagnostics": extra},
        "error": {"type": "error", "error": usage},
    }[kind]
    data = json.dumps(content).encode()
    for body in (data, b"data: " + data, json.dumps({"type": "message_start", "message": extra}).encode()):
        for status in (200, 500):
            json.dumps(Reply.parse(body, status).fields())


@given(body=st.binary(max_size=60))
def test_any_bytes_can_be_read(body):
    for encoding in ("", "gzip", "deflate", "br"):
        Reply.parse(decoded(body, encoding), 200)
