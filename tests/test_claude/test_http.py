"""Whatever a client sends, the loopback server answers it with an error or goes on without it."""

import contextlib
import json
import socket
import time

import pytest

from kvbench.claude.http import Handler, Loopback
from kvbench.claude.server import Engine, LoopbackServer

HEAD = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture
def server(prices):
    with LoopbackServer(Engine(prices), connections=4) as running:
        yield running


def sent(server: Loopback, data: bytes, seconds: float = 10.0) -> bytes:
    """The answer to raw bytes, until the server or the end of sending closes the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), seconds) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def with_body(body: bytes) -> bytes:
    return HEAD + b"content-length: %d\r\n\r\n" % len(body) + body


MALFORMED = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "words": b"hello there, server, how are you\r\n\r\n",
    "bad version": b"POST /v1/messages HTTP/x\r\n\r\n",
    "two lengths": HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
    "negative length": HEAD + b"content-length: -1\r\n\r\n",
    "no length": HEAD + b"content-length: x\r\n\r\n",
    "thousands of digits": HEAD + b"content-length: " + b"9" * 5000 + b"\r\n\r\n",
    "short body": HEAD + b"content-length: 9\r\n\r\n{}",
    "not utf-8": with_body(b"\xff\xfe"),
    "not JSON": with_body(b"{"),
    "nan": with_body(b'{"max_tokens": NaN}'),
    "huge number": with_body(b'{"max_tokens": 1e999}'),
    "deep": with_body(b"[" * 100_000),
    "a list": with_body(b"[]"),
    "null": with_body(b"null"),
    "empty": with_body(b""),
    "wrong types": with_body(b'{"model": 3, "messages": {}, "max_tokens": "x"}'),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_requests_are_answered_with_400_and_an_error_body(server, kind):
    head, _, body = sent(server, MALFORMED[kind]).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 "), head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    # and the next client is served
    assert b"HTTP/1.1 400" in sent(server, with_body(b"{}"))


def test_a_request_that_comes_drop_by_drop_is_cut_off(monkeypatch, prices):
    monkeypatch.setattr(Handler, "whole", 0.3)
    with LoopbackServer(Engine(prices), connections=1) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as slow:
            started = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - started < 8:
                    slow.sendall(b"P")
                    time.sleep(0.05)
            assert time.monotonic() - started < 5
        time.sleep(0.1)
        assert b"HTTP/1.1 400" in sent(server, with_body(b"{}"))
