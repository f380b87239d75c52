"""Records requests of the real `anthropic` SDK and their billed usage as a trace.

Three hooks: the SDK's `middleware` (sync and async clients), its HTTP transport, LangChain's ChatAnthropic. Contents
are stored only with `contents=True`. Of the headers only the API version and the beta names are kept, so keys never
reach the file.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kvbench.claude import request_json
from kvbench.claude.recording.sse import Reply, decoder
from kvbench.claude.recording.tee import AsyncTee, AsyncTransport, SyncTee, Transport
from kvbench.claude.request import KINDS, TIERS, TTL_NAMES, ContentBlock, mix
from kvbench.claude.server import workspace_of
from kvbench.claude.tokens import Counter, best_counter

FORMAT = 1
WHOLE_EVERY = 20  # interval of self-contained lines in a session, so that a lost line affects few others
ENDPOINT = "/v1/messages"


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
        self.counter = counter or best_counter()
        self.contents = contents
        self.clock = clock
        self._session: contextvars.ContextVar[str] = contextvars.ContextVar("session", default="")
        self._blocks: dict[str, tuple[ContentBlock, ...]] = {}
        self._lines: dict[str, int] = {}
        self._workspaces: dict[str, str] = {}
        self._number = 0
        self._lock = threading.Lock()

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
        if self._watched(http):
            http.stream = SyncTee(http.stream, self._finish(http, start, session, retries))

    def watch_async(self, http: Any, start: float, session: str, retries: int = 0) -> None:
        """Records an exchange once its response body has been read (asynchronous)."""
        if self._watched(http):
            http.stream = AsyncTee(http.stream, self._finish(http, start, session, retries))

    def current_session(self) -> str:
        """Name of the current conversation."""
        return self._session.get()

    def _watched(self, http: Any) -> bool:
        return http.request.url.path.rstrip("/").endswith(ENDPOINT)

    def _finish(self, http: Any, start: float, session: str, retries: int) -> Callable[[list[bytes]], None]:
        """Callback for the first chunk of the response and for its end (all chunks)."""
        began: list[float] = []
        if http.is_stream_consumed:
            # the client has already read the body, so the tee will see no bytes
            self._write(http, start, self.clock(), session, retries, http.content)
            return lambda chunks: None

        def advance(chunks: list[bytes]) -> None:
            if not began:
                began.append(self.clock())
            else:
                body = decoder(http.headers.get("content-encoding", ""))(b"".join(chunks))
                self._write(http, start, began[0], session, retries, body)

        return advance

    def _write(self, http: Any, start: float, began: float, session: str, retries: int, body: bytes) -> None:
        end = self.clock()
        sent_headers = {name.lower(): value for name, value in http.request.headers.items()}
        request = json.loads(http.request.content)
        betas = [beta.strip() for beta in sent_headers.get("anthropic-beta", "").split(",") if beta.strip()]
        reply = Reply.parse(body, http.status_code)
        with self._lock:
            self._number += 1
            line = {
                "format": FORMAT,
                "id": f"{session or 'request'}/{self._number}",
                "session": session,
                "t": start,
                "ttft": round(began - start, 6),
                "duration": round(end - start, 6),
                "status": http.status_code,
                "retries": retries,
                "stream": bool(request.get("stream")),
                "api_version": sent_headers.get("anthropic-version", ""),
                "workspace": self._workspaces.setdefault(
                    workspace_of(sent_headers), f"w{len(self._workspaces) + 1}"
                ),
                "model": request.get("model", ""),
                **self._prompt(request, session, betas, ok=http.status_code < 400),
                **reply.fields(),
            }
            for name, key in (("geo", "inference_geo"), ("speed", "speed")):
                if request.get(key):
                    line[name] = request[key]
            if self.contents:
                line["content"] = request
            with self.path.open("a") as file:
                file.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")

    def _prompt(
        self, request: Mapping[str, Any], session: str, betas: list[str], *, ok: bool
    ) -> dict[str, Any]:
        before = self._blocks.get(session, ())
        try:
            parsed = request_json.parse(request, self.counter, betas, known=before)
        except (KeyError, TypeError, AttributeError):
            return {"same": 0, "blocks": [], "markers": [], "automatic": None, "params": {}}
        same = 0
        while same < min(len(before), len(parsed.blocks)) and before[same] == parsed.blocks[same]:
            same += 1
        if not ok or self._lines.get(session, 0) % WHOLE_EVERY == 0:
            same = 0
        if ok:
            self._blocks[session] = parsed.blocks
            self._lines[session] = self._lines.get(session, 0) + 1
        return {
            "same": same,
            "prompt": f"{mix(1, [block.hash for block in parsed.blocks]):032x}",
            "blocks": [block_json(block) for block in parsed.blocks[same:]],
            "markers": [[index, TTL_NAMES[ttl]] for index, ttl in parsed.markers],
            "automatic": TTL_NAMES[parsed.automatic] if parsed.automatic is not None else None,
            "params": parsed.params,
            "tool_prompt": parsed.tool_prompt,
        }


def block_json(block: ContentBlock) -> dict[str, Any]:
    """A block in the trace format; fields with their default value are omitted."""
    line: dict[str, Any] = {
        "tier": TIERS[block.tier],
        "kind": KINDS[block.kind],
        "type": block.type,
        "hash": f"{block.hash:016x}",
        "tokens": block.tokens,
        "source": block.source,
    }
    for name in ("order", "content", "undated", "unnumbered"):
        if value := getattr(block, name):
            line[name] = f"{value:016x}"
    if block.string:
        line["string"] = True
    if block.message >= 0:
        line["message"] = block.message
    if not block.markable:
        line["markable"] = False
    return line
