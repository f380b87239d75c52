"""What the loopback server and the recording proxy share: HTTP on 127.0.0.1 with limits."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from kvbench.config.errors import UserError
from kvbench.config.text import printable

LARGEST = 32 * 1024 * 1024  # bytes of a request's body that the Messages API takes
PATIENCE = 60.0  # seconds without a byte after which a connection ends
WHOLE = 300.0  # seconds within which a request is there as a whole
CONNECTIONS = 64  # at most so many at a time
REST = (
    8 * LARGEST
)  # bytes of a body that was refused which are still read, so that its sender gets the answer


class RequestError(Exception):
    """A request that is answered with an error body."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        """Stores the HTTP status, the error's type name and its message."""
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.request_id = "req_loopback"

    def body(self) -> dict[str, Any]:
        """The error as the API words it."""
        details = {"type": self.kind, "message": str(self)}
        return {"type": "error", "error": details, "request_id": self.request_id}


class Handler(BaseHTTPRequestHandler):
    """Reads requests within the limits."""

    protocol_version = "HTTP/1.1"
    server_version = "kvbench-loopback"
    sys_version = ""
    timeout = PATIENCE
    whole = WHOLE
    _unread = 0  # bytes of a body that was refused

    def finish(self) -> None:
        """Lets a client that sends before it reads finish a body that was refused: otherwise it gets no answer."""
        left = min(self._unread, REST)
        with contextlib.suppress(OSError):
            self.wfile.flush()
            while left > 0 and (part := self.rfile.read(min(left, 65_536))):
                left -= len(part)
        super().finish()

    def handle_one_request(self) -> None:
        """Reads and answers a request; a client that sends it drop by drop is cut off."""
        self._deadline = threading.Timer(self.whole, self._cut_off)
        self._deadline.daemon = True
        self._deadline.start()
        try:
            super().handle_one_request()
        finally:
            self._deadline.cancel()

    def _cut_off(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers a request that is not HTTP, or of an unknown method, as the API words errors."""
        # otherwise no status line is sent to what does not look like HTTP/1
        self.request_version = self.protocol_version
        self.close_connection = True
        error = RequestError(code, "invalid_request_error", printable(message or "malformed request"))
        self.send_json(code, error.body(), {})

    def read_body(self) -> bytes:
        """The body of the request.

        Raises:
            RequestError: it has no length, an impossible one, is too long, or ends early.
        """
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            self.close_connection = True
            raise RequestError(
                411, "invalid_request_error", "content-length: required, chunked bodies are not taken"
            )
        lengths = self.headers.get_all("content-length", ["0"])
        text = lengths[0]
        if len(set(lengths)) > 1 or not (text.isascii() and text.isdigit() and len(text) < 20):
            self.close_connection = True
            given = ", ".join(lengths)[:80]
            raise RequestError(400, "invalid_request_error", f"content-length: {given!r} is not a length")
        length = int(text)
        if length > LARGEST:
            self._unread = length
            self.close_connection = True
            raise RequestError(
                413,
                "request_too_large",
                f"Request exceeds the maximum size: {length} bytes, at most {LARGEST}",
            )
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            body = b""
        if len(body) < length:
            self.close_connection = True
            raise RequestError(400, "invalid_request_error", f"the body ends before its {length} bytes")
        self._deadline.cancel()
        return body

    def send_json(self, status: int, content: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        """Sends a JSON body."""
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            **headers,
            "content-length": len(data),
        }.items():
            self.send_header(name, str(value))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: headers hold keys."""


class _Limited(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, handler: type[Handler], connections: int) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self._places = threading.BoundedSemaphore(connections)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self._refuse(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no error of the server."""

    def _refuse(self, request: socket.socket) -> None:
        error = RequestError(529, "overloaded_error", "Overloaded: too many connections at a time")
        data = json.dumps(error.body()).encode()
        head = f"HTTP/1.1 529 Overloaded\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
        try:
            request.settimeout(1.0)
            request.sendall(f"{head}connection: close\r\n\r\n".encode() + data)
        except OSError:
            pass
        self.shutdown_request(request)


class Loopback:
    """Serves a handler on 127.0.0.1 in a thread, as a context manager."""

    def __init__(self, handler: type[Handler], port: int = 0, connections: int = CONNECTIONS) -> None:
        """Binds a port; `__enter__` starts serving.

        Args:
            handler: answers the requests.
            port: 0 for any free one.
            connections: most connections at a time; more are answered with 529.

        Raises:
            UserError: the port cannot be used.
        """
        try:
            self._http = _Limited(port, handler, connections)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port={port}: cannot be used ({error}); give another one, or 0 for any"
            ) from None
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        """Starts serving."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops serving and frees the port."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
