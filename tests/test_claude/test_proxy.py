"""The recording proxy, in front of the loopback server and of servers of the test; never of the real API."""

import contextlib
import gzip
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

anthropic = pytest.importorskip("anthropic")

from kvbench.claude.assumptions import Assumptions  # noqa: E402
from kvbench.claude.recording.log import TraceLog  # noqa: E402
from kvbench.claude.recording.proxy import OFFICIAL, RecordingProxy, conversation_of, upstream_of  # noqa: E402
from kvbench.claude.server import Engine, LoopbackServer  # noqa: E402
from kvbench.claude.traces.recorded import RecordedTrace  # noqa: E402
from kvbench.config.errors import UserError  # noqa: E402

KEY = "sk-ant-secret-0123456789"
MODEL = "claude-sonnet-4-6"
LONG = "The quick brown fox jumps over the lazy dog. " * 200
MARK = {"type": "ephemeral"}


@pytest.fixture
def server(prices):
    with LoopbackServer(Engine(prices, clock=lambda: 1.79e9)) as running:
        yield running


@pytest.fixture
def proxy(server, tmp_path):
    with RecordingProxy(tmp_path / "t.jsonl", upstream=server.url, clock=lambda: 1.79e9) as running:
        yield running


def client(url):
    return anthropic.Anthropic(
        base_url=url, api_key=KEY, max_retries=0, default_headers={"anthropic-version": "2023-06-01"}
    )


def messages(*texts):
    roles = ("user", "assistant")
    return [
        {"role": roles[n % 2], "content": [{"type": "text", "text": text}]} for n, text in enumerate(texts)
    ]


def test_the_sdk_sees_what_the_server_says_and_the_trace_has_it(server, proxy, prices, tmp_path):
    sdk = client(proxy.url)
    talks = [
        messages(f"first {LONG}"),
        messages(f"first {LONG}", "answer", f"second {LONG}"),
        messages(f"other {LONG}"),
    ]
    got = []
    for talk in talks:
        got.append(sdk.messages.create(model=MODEL, max_tokens=9, messages=talk, cache_control=MARK).usage)
    with sdk.messages.stream(model=MODEL, max_tokens=9, messages=talks[1], cache_control=MARK) as stream:
        assert "".join(stream.text_stream) == "This is a scripted answer."
        got.append(stream.get_final_message().usage)
    assert sdk.messages.count_tokens(model=MODEL, messages=talks[0]).input_tokens > 0
    assert [usage.cache_read_input_tokens > 0 for usage in got] == [False, True, False, True]
    with pytest.raises(anthropic.BadRequestError, match="Input should be 'ephemeral'"):
        sdk.messages.create(model=MODEL, max_tokens=9, messages=talks[0], cache_control={"type": "x"})
    proxy.settle()
    trace = RecordedTrace(tmp_path / "t.jsonl", prices)
    found = list(trace.requests(Assumptions()))
    assert trace.problems.lines == []
    assert len(trace.rejected) == 1
    assert [(r.usage.read, r.usage.write_5m, r.usage.uncached) for r in found] == [
        (u.cache_read_input_tokens, u.cache_creation_input_tokens, u.input_tokens) for u in got
    ]
    # a conversation keeps its first message
    names = [request.session for request in found]
    assert names[0] == names[1] == names[3] != names[2]
    text = (tmp_path / "t.jsonl").read_text()
    assert KEY not in text and "quick brown fox" not in text
    assert len(server.engine.log) == 5
    assert proxy.log.lines == 5


def test_what_was_answered_is_written_before_the_proxy_ends(server, tmp_path, monkeypatch):
    """Writing is held back until the proxy is told to end; the client had its answer long before."""
    ends = threading.Event()
    write = TraceLog.write

    def late(log, exchange):
        assert ends.wait(5)
        write(log, exchange)

    monkeypatch.setattr(TraceLog, "write", late)
    with RecordingProxy(tmp_path / "t.jsonl", upstream=server.url) as proxy:
        client(proxy.url).messages.create(model=MODEL, max_tokens=9, messages=messages("hello"))
        assert proxy.log.lines == 0
        ends.set()
    assert proxy.log.lines == 1


def test_contents_on_demand(server, tmp_path):
    with RecordingProxy(tmp_path / "t.jsonl", upstream=server.url, contents=True) as proxy:
        client(proxy.url).messages.create(model=MODEL, max_tokens=9, messages=messages("hello"))
    line = json.loads((tmp_path / "t.jsonl").read_text())
    assert line["content"]["messages"] == messages("hello")
    assert KEY not in json.dumps(line)


class Upstream(BaseHTTPRequestHandler):
    """Answers as a test says, and keeps what it got."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        length = int(self.headers["content-length"])
        self.server.got.append((self.path, dict(self.headers.items()), self.rfile.read(length)))
        self.server.answer(self)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def upstream(answer):
    server = HTTPServer(("127.0.0.1", 0), Upstream)
    server.got, server.answer = [], answer
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}]}).encode()


def call(url, body=BODY, headers=()):
    import http.client
    from urllib.parse import urlsplit

    address = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(address.hostname, address.port, timeout=10)) as link:
        link.request("POST", "/v1/messages?beta=true", body, dict(headers))
        response = link.getresponse()
        try:
            return response.status, response.headers, response.read()
        except http.client.HTTPException as error:
            return response.status, response.headers, error


def test_headers_and_bytes_pass_unchanged(tmp_path):
    reply = gzip.compress(json.dumps({"usage": {"input_tokens": 7, "output_tokens": 1}}).encode())

    def answer(handler):
        handler.send_response(200)
        for name, value in (
            ("content-encoding", "gzip"),
            ("content-length", len(reply)),
            ("request-id", "r"),
        ):
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(reply)

    with (
        upstream(answer) as (server, url),
        RecordingProxy(tmp_path / "t.jsonl", upstream=f"{url}/base/") as proxy,
    ):
        sent = {
            "x-api-key": KEY,
            "anthropic-beta": "a,b",
            "accept-encoding": "gzip, br, zstd",
            "connection": "x",
        }
        status, headers, body = call(proxy.url, headers=sent.items())
    assert (status, body, headers["request-id"], headers["content-encoding"]) == (200, reply, "r", "gzip")
    ((path, got, data),) = server.got
    assert (path, data) == ("/base/v1/messages?beta=true", BODY)
    assert (got["x-api-key"], got["anthropic-beta"]) == (KEY, "a,b")
    # only what the recorder can read is asked for
    assert got["accept-encoding"] == "gzip"
    assert got["Host"] == f"127.0.0.1:{server.server_port}"
    line = json.loads((tmp_path / "t.jsonl").read_text())
    assert line["usage"]["uncached"] == 7
    assert KEY not in json.dumps(line)


def test_odd_responses_and_requests_pass(tmp_path):
    def answer(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort")
        handler.close_connection = True

    with upstream(answer) as (_, url), RecordingProxy(tmp_path / "t.jsonl", upstream=url) as proxy:
        status, _, body = call(proxy.url)
        assert (status, getattr(body, "partial", body)) == (200, b"short")
        with pytest.warns(RuntimeWarning, match="the recorder lost a request"):
            call(proxy.url, b"no json")
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 1


def test_an_upstream_that_is_gone_is_an_error_body(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with RecordingProxy(tmp_path / "t.jsonl", upstream=f"http://127.0.0.1:{port}") as proxy:
        status, _, body = call(proxy.url)
    assert (status, json.loads(body)["error"]["type"]) == (502, "api_error")


def test_it_listens_on_loopback_only_and_sends_nothing_by_itself(tmp_path):
    with RecordingProxy(tmp_path / "t.jsonl") as proxy:
        assert proxy.url.startswith("http://127.0.0.1:")
        assert proxy._http.server_address[0] == "127.0.0.1"
    assert not (tmp_path / "t.jsonl").exists()
    assert upstream_of(OFFICIAL).hostname == "api.anthropic.com"


@pytest.mark.parametrize(
    "address",
    ["http://example.com", "ftp://127.0.0.1", "api.anthropic.com", "", "https://", "https://u@x.y", "https://x.y/?a=1", "https://x:y"],
)  # fmt: skip
def test_addresses_that_are_refused(address):
    with pytest.raises(UserError, match="upstream="):
        upstream_of(address)


def test_mistakes_of_the_command(tmp_path, proxy):
    for path in (tmp_path, tmp_path / "none" / "t.jsonl"):
        with pytest.raises(UserError, match="give a file in a folder that exists"):
            RecordingProxy(path)
    port = int(proxy.url.rsplit(":", 1)[1])
    for taken in (port, 70_000):
        with pytest.raises(UserError, match=f"port={taken}: cannot be used"):
            RecordingProxy(tmp_path / "u.jsonl", port=taken)


def test_a_conversation_is_named_by_its_first_message():
    text = {"role": "user", "content": "hello"}
    block = {"role": "user", "content": [{"type": "text", "text": "hello", "cache_control": MARK}]}
    one = conversation_of({"messages": [text, {"role": "assistant", "content": "x"}]})
    assert one == conversation_of({"messages": [block]})
    assert one != conversation_of({"messages": [{"role": "user", "content": "hi"}]})
    for odd in ({}, {"messages": []}, {"messages": 3}, {"messages": [3]}, {"messages": [{"content": [3]}]}):
        assert conversation_of(odd)
