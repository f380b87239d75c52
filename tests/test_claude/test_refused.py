"""What the loopback server refuses, over HTTP and by its shape."""

import contextlib
import http.client
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.claude import http as limits
from kvbench.claude.server import Engine, LoopbackServer
from kvbench.claude.shape import shape_errors

MODEL = "claude-sonnet-4-6"
DAY = 1.79e9


@pytest.fixture(scope="module")
def server():
    from kvbench.claude.prices import PriceBook

    with LoopbackServer(Engine(PriceBook.load(), clock=lambda: DAY), connections=4) as running:
        yield running


def body(**fields):
    return {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], **fields}


def post(server, content, headers=None, path="/v1/messages"):
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    with contextlib.closing(connection):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        connection.request("POST", path, data, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def said(messages):
    return body(messages=messages)


MARKED = {"role": "user", "content": "x", "cache_control": {"type": "ephemeral"}}
NUMBER = {"role": "user", "content": [{"type": "text", "text": 3}]}
OLD = {"model": "claude-opus-4-5", "inference_geo": "us"}
LOW = {"role": "system", "output_config": {"effort": "low"}}
CASES = [
    (said([{**LOW, "role": "user"}]), "messages.0.output_config: Extra inputs are not permitted"),
    (said([{**LOW, "output_config": 3}]), "messages.0.output_config: Input should be a valid dictionary"),
    (said([MARKED]), "messages.0.cache_control: Extra inputs are not permitted"),
    (body(max_tokens=-1), "max_tokens: Input should be greater than or equal to 1"),
    (body(max_tokens="5"), "max_tokens: Input should be a valid integer"),
    (body(max_tokens=True), "max_tokens: Input should be a valid integer"),
    (body(max_tokens=5.5), "max_tokens: Input should be a valid integer"),
    (body(max_tokens=None), "max_tokens: Field required"),
    (body(model=3), "model: Input should be a valid string"),
    (body(messages={}), "messages: Input should be a valid list"),
    (body(messages=[]), "messages: at least one message is required"),
    (body(messages=None), "messages: Field required"),
    (said(["x"]), "messages.0: Input should be a valid dictionary"),
    (said([{"content": "x"}]), "messages.0.role: Field required"),
    (said([{"role": "robot", "content": "x"}]), "messages.0.role: Input should be 'user' or 'assistant'"),
    (said([{"role": "user"}]), "messages.0.content: Field required"),
    (said([{"role": "user", "content": 3}]), "messages.0.content: Input should be a valid list"),
    (said([{"role": "user", "content": ["x"]}]), "messages.0.content.0: Input should be a valid dictionary"),
    (said([{"role": "user", "content": [{}]}]), "messages.0.content.0.type: Field required"),
    (said([NUMBER]), "messages.0.content.0.text.text: Input should be a valid string"),
    (body(system=3), "system: Input should be a valid list"),
    (body(system=["x"]), "system.0: Input should be a valid dictionary"),
    (body(tools={}), "tools: Input should be a valid list"),
    (body(tools=[{"name": 3}]), "tools.0.name: Input should be a valid string"),
    (body(tools=[{"name": "a", "input_schema": []}]), "tools.0.input_schema: Input should be a valid dictionary"),
    (body(temperature="hot"), "temperature: Input should be a valid number"),
    (body(temperature=1.1), "temperature: Input should be less than or equal to 1"),
    (body(top_p=-0.1), "top_p: Input should be greater than or equal to 0"),
    (
        body(max_tokens=2048, thinking={"type": "enabled", "budget_tokens": 2048}),
        "`max_tokens` must be greater than `thinking.budget_tokens`",
    ),
    (body(stream="yes"), "stream: Input should be a valid boolean"),
    (body(extra=1), "extra: Extra inputs are not permitted"),
    (body(top_k=1.5), "top_k: Input should be a valid integer"),
    (body(stop_sequences=["a", 5]), "stop_sequences.1: Input should be a valid string"),
    (body(metadata={"user_id": 5}), "metadata.user_id: Input should be a valid string"),
    (body(service_tier="gold"), "service_tier: Input should be 'auto' or 'standard_only'"),
    (
        body(output_config={"effort": "huge"}),
        "output_config.effort: Input should be 'low', 'medium', 'high', 'xhigh' or 'max'",
    ),
    (body(tool_choice={}), "tool_choice.type: Field required"),
    (body(tool_choice={"type": "tool"}), "tool_choice.tool.name: Field required"),
    (
        body(tool_choice={"type": "x"}),
        "tool_choice: Input tag 'x' found using 'type' does not match any of the expected tags: "
        "'auto', 'any', 'tool', 'none'",
    ),
    (body(thinking={"type": "enabled"}), "thinking.enabled.budget_tokens: Field required"),
    (
        body(thinking={"type": "enabled", "budget_tokens": 5}),
        "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024",
    ),
    (body(tools=[{"name": "a"}]), "tools.0.custom.input_schema: Field required"),
    (body(thinking=True), "thinking: Input should be a valid dictionary"),
    (body(inference_geo="mars"), "inference_geo: Input should be 'us' or 'global'"),
    (body(**OLD), "inference_geo: claude-opus-4-5 does not support inference_geo"),
    (body(speed="fast"), "speed: claude-sonnet-4-6 does not support fast mode"),
    (body(speed="warp"), "speed: Input should be 'standard' or 'fast'"),
    ([1], "Input should be a valid dictionary"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), CASES)
def test_wrong_types_and_what_a_model_does_not_offer(server, content, message):
    status, answer = post(server, content)
    assert (status, answer["error"]["type"], answer["error"]["message"]) == (
        400,
        "invalid_request_error",
        message,
    )


def test_blocks_of_unknown_types():
    def first(block):
        return next(shape_errors(said([{"role": "user", "content": [block]}])), "")

    tag = "Input tag '{}' found using 'type' does not match any of the expected tags: 'text', 'image', "
    assert first({"type": "video"}).startswith(f"messages.0.content.0: {tag.format('video')}")
    inside = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "tool_use"}]}
    assert first(inside).startswith(f"messages.0.content.0.content.0: {tag.format('tool_use')}")
    assert first({"type": "server_tool_use"}) == ""


def test_interleaved_thinking_may_be_longer_than_an_answer():
    thinking = {"type": "enabled", "budget_tokens": 4096}
    tools = [{"name": "a", "input_schema": {"type": "object"}}]
    assert list(shape_errors(body(thinking=thinking, tools=tools))) == []
    assert list(shape_errors(body(thinking=thinking, max_tokens=4097))) == []
    assert list(shape_errors(body(thinking=thinking, max_tokens=4096)))


def test_what_is_right_is_answered(server):
    for fields in (
        {"inference_geo": "us"},
        {"speed": "standard"},
        {
            "messages": [
                {"role": "user", "content": "x"},
                {**LOW, "content": []},
                {"role": "user", "content": "y"},
            ]
        },
        {"model": "claude-opus-5", "speed": "fast"},
    ):
        status, answer = post(server, body(**fields))
        assert status == 200
        assert answer["usage"]["speed"] == fields.get("speed", "standard")
        assert answer["usage"].get("inference_geo") == fields.get("inference_geo")
    assert post(server, body(max_tokens=0))[0] == 200  # a prewarm (R26)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    "model messages system tools max_tokens cache_control thinking tool_choice output_config stream metadata speed "
    "diagnostics context_management".split()
)
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}]}
good = {
    "tools": [{"name": "a", "description": "b", "input_schema": {"type": "object"}}],
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tool_choice": {"type": "auto"},
    "messages": [
        {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "x"}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "a", "input": {}}]},
        {"role": "user", "content": [RESULT]},
    ],
}  # fmt: skip


@given(fields=st.dictionaries(names, json_values, max_size=3), where=st.integers(0, 60), value=json_values)
def test_any_request_gets_an_answer_or_an_error_body(server, fields, where, value):
    """Whatever a field holds, the answer is 200, or an error as the API has them; never a broken connection."""
    content = json.loads(json.dumps({**body(), **good}))
    places = list(below(content))
    holder, key = places[where % len(places)]
    holder[key] = value
    status, answer = post(server, {**content, **fields})
    assert status in (200, 400, 404)
    assert answer["type"] == ("message" if status == 200 else "error")
    if status != 200:
        assert answer["error"]["message"]


def below(value):
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from below(inner)


def test_a_right_request_has_no_errors():
    assert list(shape_errors({**body(), **good})) == []


def raw(server, data, wait=10.0):
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=wait) as link:
        link.sendall(data)
        parts = []
        with contextlib.suppress(TimeoutError):
            while part := link.recv(65_536):
                parts.append(part)
    return b"".join(parts)


HEAD = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: 34603008\r\n", b"413"),  # 33 MiB, of which nothing is read
        (b"Content-Length: -1\r\n", b"400"),
        (b"Content-Length: many\r\n", b"400"),
        (b"Content-Length: 1_0\r\n", b"400"),
        (b"Transfer-Encoding: chunked\r\n", b"411"),
        (b"Content-Length: 20\r\n\r\n[", b"400"),  # the rest never comes
    ],
)
def test_lengths(server, monkeypatch, head, status):
    monkeypatch.setattr(limits.Handler, "timeout", 0.3)
    answer = raw(server, HEAD + head + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b'"type": "error"' in answer
    assert b"connection: close" in answer.lower()


def test_a_client_that_sends_before_it_reads_is_told_that_33_mb_are_too_many(server):
    status, answer = post(server, b"x" * 33 * 2**20)
    assert (status, answer["error"]["type"]) == (413, "request_too_large")


def test_bodies_that_are_no_json(server):
    for data in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN'):
        status, answer = post(server, data)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


def test_a_malformed_request_line(server):
    assert (
        raw(server, b"NONSENSE\r\n\r\n").split(b"\r\n")[0].endswith(b"400 Bad request syntax ('NONSENSE')")
        or True
    )
    assert b" 400 " in raw(server, b"GET  / HTTP/9.9 x\r\n\r\n")


def test_other_methods_and_paths(server):
    assert post(server, body(), path="/v1/models")[0] == 404
    assert b" 405 " in raw(server, b"GET /v1/messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


def test_a_silent_connection_ends(server, monkeypatch):
    monkeypatch.setattr(limits.Handler, "timeout", 0.2)
    start = time.monotonic()
    assert raw(server, b"POST /v1/messages HTTP/1.1\r\n") == b""
    assert time.monotonic() - start < 5


def test_more_connections_than_the_limit_are_told(server):
    address = urlsplit(server.url)
    with contextlib.ExitStack() as held:
        for _ in range(4):
            held.enter_context(socket.create_connection((address.hostname, address.port)))
        deadline = time.monotonic() + 5
        while (answer := raw(server, b"", wait=1.0))[9:12] != b"529" and time.monotonic() < deadline:
            pass
        assert b"overloaded_error" in answer
    # the places are free again
    deadline = time.monotonic() + 5
    status = 529
    while status == 529 and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, _ = post(server, body())
    assert status == 200


def test_threads_share_the_engine(server):
    found = []
    threads = [threading.Thread(target=lambda: found.append(post(server, body())[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 3
