"""Records requests of the real `anthropic` SDK and their billed usage as a trace.

Three hooks: the SDK's `middleware` (sync and async clients), its HTTP transport, LangChain's ChatAnthropic. A fault of
the recorder is a warning; the call's own result or error passes untouched. `log.py` says what is stored.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from kvbench.claude.recording.exchange import Exchange
from kvbench.claude.recording.log import TraceLog, harmless, is_recorded
from kvbench.claude.recording.tee import AsyncTee, AsyncTransport, SyncTee, Transport
from kvbench.claude.tokens import Counter


class Recorder:
    """Appends one JSON line per request to a file.

    Use `Anthropic(middleware=[recorder.sync])`, `AsyncAnthropic(middleware=[recorder.asynchronous])`,
    `recorder.attach(chat_anthropic)`, or a client with `recorder.transport()`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        counter: Counter | None = None,
        contents: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Does no I/O yet.

        Args:
            path: the trace file; lines are appended.
            counter: counts the tokens of each block; default is `best_counter()`.
            contents: also store the request's JSON.
            clock: seconds since the epoch.
        """
        self.path = Path(path)
        self.clock = clock
        self._log = TraceLog(path, counter=counter, contents=contents)
        self._session: contextvars.ContextVar[str] = contextvars.ContextVar("session", default="")

    @contextlib.contextmanager
    def session(self, name: str) -> Iterator[None]:
        """Sets the conversation of the requests made in this context."""
        token = self._session.set(name)
        try:
            yield
        finally:
            self._session.reset(token)

    def sync(self, request: Any, call_next: Callable[[Any], Any]) -> Any:
        """Middleware of the synchronous client, called once per attempt."""
        start = self.clock()
        response = call_next(request)
        self.watch(response.http_response, start, self._session.get(), request.retries_taken)
        return response

    async def asynchronous(self, request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """Middleware of the asynchronous client."""
        start = self.clock()
        response = await call_next(request)
        self.watch_async(response.http_response, start, self._session.get(), request.retries_taken)
        return response

    def attach(self, chat: Any) -> Any:
        """Hooks into a LangChain ChatAnthropic, which has no middleware parameter, and returns it."""
        # sets the cached values of cached properties
        for name, hook in (("_client", self.sync), ("_async_client", self.asynchronous)):
            client = getattr(chat, name)
            object.__setattr__(chat, name, client.with_options(middleware=[*client.middleware, hook]))
        return chat

    def transport(self, inner: Any = None) -> Transport:
        """A transport for `DefaultHttpxClient(transport=...)`, as an alternative to middleware."""
        return Transport(self, inner)

    def async_transport(self, inner: Any = None) -> AsyncTransport:
        """A transport for `DefaultAsyncHttpxClient(transport=...)`."""
        return AsyncTransport(self, inner)

    def watch(self, http: Any, start: float, session: str, retries: int = 0) -> None:
        """Records an exchange once its response body has been read (synchronous)."""
        with harmless():
            if self._watched(http):
                http.stream = SyncTee(http.stream, self._finish(http, start, session, retries))

    def watch_async(self, http: Any, start: float, session: str, retries: int = 0) -> None:
        """Records an exchange once its response body has been read (asynchronous)."""
        with harmless():
            if self._watched(http):
                http.stream = AsyncTee(http.stream, self._finish(http, start, session, retries))

    def current_session(self) -> str:
        """Name of the current conversation."""
        return self._session.get()

    def _watched(self, http: Any) -> bool:
        return is_recorded(http.request.method, http.request.url.path)

    def _finish(self, http: Any, start: float, session: str, retries: int) -> Callable[[list[bytes]], None]:
        """Callback for the first chunk of the response and for its end (all chunks)."""
        began: list[float] = []

        def write(began: float, body: bytes, encoding: str) -> None:
            exchange = Exchange(
                sent={name.lower(): value for name, value in http.request.headers.items()},
                request=http.request.content,
                path=http.request.url.path,
                status=http.status_code,
                encoding=encoding,
                body=body,
                start=start,
                began=began,
                end=self.clock(),
                session=session,
                retries=retries,
            )
            self._log.write(exchange)

        def advance(chunks: list[bytes]) -> None:
            with harmless():
                if not began:
                    began.append(self.clock())
                else:
                    write(began[0], b"".join(chunks), http.headers.get("content-encoding", ""))

        if http.is_stream_consumed:
            # the client has already read the body, so the tee will see no bytes
            write(self.clock(), http.content, "")
            return lambda chunks: None
        return advance
