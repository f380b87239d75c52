"""A proxy on 127.0.0.1 that records what passes, for tools that only take ANTHROPIC_BASE_URL.

Every request goes on to the Messages API as it came, its key included; the key is not stored. The response passes as it
comes, in pieces.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import SplitResult, urlsplit

from kvbench.claude.http import Handler, Loopback, RequestError
from kvbench.claude.recording.exchange import Exchange
from kvbench.claude.recording.log import TraceLog, harmless, is_recorded
from kvbench.claude.request import digest
from kvbench.config.errors import UserError

OFFICIAL = "https://api.anthropic.com"
PIECE = 65_536  # bytes read at a time
# headers of one connection only (RFC 9110, 7.6.1), and those that the proxy sets
OWN = (
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "content-length",
)
READABLE = ("gzip", "deflate", "identity")  # encodings that the recorder can read


def upstream_of(address: str) -> SplitResult:
    """Checks where requests go.

    Raises:
        UserError: neither https nor an address of this machine.
    """
    found = urlsplit(address)
    try:
        host, _ = found.hostname, found.port
    except ValueError:
        host = None
    local = host == "localhost" or (host is not None and _loopback(host))
    if host is None or found.scheme not in ("https", "http") or (found.scheme == "http" and not local):
        raise UserError(f"upstream={address}: give an address as {OFFICIAL}; http only on this machine")
    if found.query or found.fragment or found.username:
        raise UserError(f"upstream={address}: give the address alone, without user, query or fragment")
    return found


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _UnderWay:
    """Counts the calls under way."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Returns when there are none, or after some seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._count, seconds)


class RecordingProxy(Loopback):
    """The proxy as a context manager; `url` is what ANTHROPIC_BASE_URL is set to."""

    def __init__(
        self,
        path: str | Path,
        *,
        port: int = 0,
        upstream: str = OFFICIAL,
        contents: bool = False,
        clock: Callable[[], float] = time.time,
        patience: float = 600.0,
    ) -> None:
        """Binds a port and sends nothing.

        Args:
            path: the trace file; its folder must exist.
            port: 0 for any free one.
            upstream: where requests go.
            contents: also store the requests' JSON.
            clock: seconds since the epoch.
            patience: seconds without a byte from upstream after which a request fails.

        Raises:
            UserError: an address that is not allowed, a port in use, or a folder that is missing.
        """
        path = Path(path)
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"file={path}: give a file in a folder that exists")
        self.log = TraceLog(path, contents=contents)
        self._under_way = _UnderWay()
        values = {
            "upstream": upstream_of(upstream),
            "log": self.log,
            "clock": staticmethod(clock),
            "under_way": self._under_way,
        }
        super().__init__(type("ProxyHandler", (_Proxy,), {**values, "patience": patience}), port)

    def settle(self, seconds: float = 5.0) -> None:
        """Waits until the calls under way are written: a client has its answer a little earlier."""
        self._under_way.wait(seconds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops serving, once what was answered is written."""
        super().__exit__(kind, error, trace)
        self.settle()


class _Proxy(Handler):
    upstream: SplitResult
    under_way: _UnderWay
    log: TraceLog
    clock: Callable[[], float]
    patience: float

    def do_POST(self) -> None:
        self._pass()

    def do_GET(self) -> None:
        self._pass()

    def do_HEAD(self) -> None:
        self._pass()

    def do_DELETE(self) -> None:
        self._pass()

    def _pass(self) -> None:
        with self.under_way:
            self._pass_on()

    def _pass_on(self) -> None:
        start = self.clock()
        try:
            body = self.read_body()
            connection, response = self._send(body)
        except RequestError as error:
            self.send_json(error.status, error.body(), {})
            return
        try:
            self._return(response, body, start)
        finally:
            connection.close()

    def _send(self, body: bytes) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self.upstream.scheme == "https" else http.client.HTTPConnection
        host = self.upstream.hostname or ""
        connection = kind(host, self.upstream.port, timeout=self.patience)
        try:
            connection.putrequest(
                self.command, f"{self.upstream.path.rstrip('/')}{self.path}", skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() == "accept-encoding":
                    value = ", ".join(part for part in value.split(", ") if part.split(";")[0] in READABLE)
                if name.lower() not in OWN and value:
                    connection.putheader(name, value)
            if body or self.command == "POST":
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise RequestError(
                502,
                "api_error",
                f"the proxy cannot reach {self.upstream.netloc} ({type(error).__name__}: {error})",
            ) from None

    def _return(self, response: http.client.HTTPResponse, body: bytes, start: float) -> None:
        """Passes a response on, and records it, also if the client leaves before its end."""
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in OWN:
                self.send_header(name, value)
        length = response.headers.get("content-length")
        if length is not None:
            self.send_header("content-length", length)
        elif self.command != "HEAD" and response.status not in (204, 304):
            # the end of the connection is the end of the body
            self.close_connection = True
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        pieces: list[bytes] = []
        began: float | None = None
        try:
            while piece := response.read1(PIECE):
                began = self.clock() if began is None else began
                pieces.append(piece)
                self.wfile.write(piece)
                self.wfile.flush()
        except (OSError, http.client.HTTPException):
            # the client sees a body that ends early, as it would without the proxy
            self.close_connection = True
        if length is not None and sum(map(len, pieces)) < int(length):
            # upstream ended early, and so does the client's body
            self.close_connection = True
        if is_recorded(self.command, self.path):
            with harmless():
                self._record(response, body, b"".join(pieces), start, began)

    def _record(
        self,
        response: http.client.HTTPResponse,
        body: bytes,
        answer: bytes,
        start: float,
        began: float | None,
    ) -> None:
        end = self.clock()
        self.log.write(
            Exchange(
                sent={name.lower(): value for name, value in self.headers.items()},
                request=body,
                path=self.path.split("?")[0],
                status=response.status,
                encoding=response.headers.get("content-encoding", ""),
                body=answer,
                start=start,
                began=end if began is None else began,
                end=end,
                session=conversation_of(json.loads(body)) if body else "",
            )
        )


def conversation_of(request: Mapping[str, Any]) -> str:
    """A name for the conversation of a request: a hash of its first message, which a longer prompt keeps."""
    messages = request.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    content = first.get("content") if isinstance(first, Mapping) else first
    # a string and its text block are the same message; a marker is not part of it
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if isinstance(parts, list):
        parts = [
            {key: value for key, value in part.items() if key != "cache_control"}
            if isinstance(part, Mapping)
            else part
            for part in parts
        ]
    return f"c{digest(json.dumps(parts, sort_keys=True)):016x}"
