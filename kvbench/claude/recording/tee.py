"""Copies the bytes of HTTP responses while the SDK reads them; needs httpx2, a dependency of the SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import httpx2

Advance = Callable[[list[bytes]], None]
"""Callback with the chunks so far, called for the first chunk and at the end."""


class Watcher(Protocol):
    """Receiver of the exchanges of a transport."""

    clock: Callable[[], float]

    def current_session(self) -> str: ...

    def watch(self, http: Any, start: float, session: str, retries: int = 0) -> None: ...

    def watch_async(self, http: Any, start: float, session: str, retries: int = 0) -> None: ...


class _Chunks:
    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._chunks: list[bytes] = []
        self._done = False

    def add(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        if len(self._chunks) == 1:
            self._advance(self._chunks)

    def finish(self) -> None:
        """Reports once, even if the reader stops early and closes the stream."""
        if self._chunks and not self._done:
            self._done = True
            self._advance(self._chunks)


class SyncTee(httpx2.SyncByteStream):
    """A response stream that copies the bytes read from it."""

    def __init__(self, inner: Any, advance: Advance) -> None:
        """Wraps a stream."""
        self._inner = inner
        self._copy = _Chunks(advance)

    def __iter__(self) -> Iterator[bytes]:
        """Yields the inner stream's chunks."""
        for chunk in self._inner:
            self._copy.add(chunk)
            yield chunk
        self._copy.finish()

    def close(self) -> None:
        """Closes the inner stream."""
        self._inner.close()
        self._copy.finish()


class AsyncTee(httpx2.AsyncByteStream):
    """An asynchronous response stream that copies the bytes read from it."""

    def __init__(self, inner: Any, advance: Advance) -> None:
        """Wraps a stream."""
        self._inner = inner
        self._copy = _Chunks(advance)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields the inner stream's chunks."""
        async for chunk in self._inner:
            self._copy.add(chunk)
            yield chunk
        self._copy.finish()

    async def aclose(self) -> None:
        """Closes the inner stream."""
        await self._inner.aclose()
        self._copy.finish()


class Transport(httpx2.BaseTransport):
    """A transport that records every exchange."""

    def __init__(self, watcher: Watcher, inner: Any = None) -> None:
        """Wraps a transport; default is a plain HTTP one."""
        self._watcher = watcher
        self._inner = inner or httpx2.HTTPTransport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends the request and records the exchange."""
        start = self._watcher.clock()
        response = self._inner.handle_request(request)
        response.request = request
        self._watcher.watch(response, start, self._watcher.current_session())
        return response

    def close(self) -> None:
        """Closes the inner transport."""
        self._inner.close()


class AsyncTransport(httpx2.AsyncBaseTransport):
    """An asynchronous transport that records every exchange."""

    def __init__(self, watcher: Watcher, inner: Any = None) -> None:
        """Wraps a transport; default is a plain HTTP one."""
        self._watcher = watcher
        self._inner = inner or httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends the request and records the exchange."""
        start = self._watcher.clock()
        response = await self._inner.handle_async_request(request)
        response.request = request
        self._watcher.watch_async(response, start, self._watcher.current_session())
        return response

    async def aclose(self) -> None:
        """Closes the inner transport."""
        await self._inner.aclose()
