"""Writes a trace line per exchange with the Messages API.

Contents are stored only on demand. Of the headers only the API version and the beta names are kept, so keys never reach
the file. What was billed, and on which terms, is taken from the response.
"""

from __future__ import annotations

import contextlib
import json
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvbench.claude import request_json
from kvbench.claude.recording.batches import Batches, is_batch
from kvbench.claude.recording.exchange import ENDPOINT, Exchange
from kvbench.claude.recording.sse import Reply, decoded
from kvbench.claude.request import KINDS, TIERS, TTL_NAMES, ContentBlock, mix
from kvbench.claude.server import workspace_of
from kvbench.claude.tokens import Counter, best_counter
from kvbench.config.files import append
from kvbench.config.text import one_line

FORMAT = 1
WHOLE_EVERY = 20  # interval of self-contained lines in a session, so that a lost line affects few others


@contextlib.contextmanager
def harmless() -> Iterator[None]:
    """Turns an error in its block into one warning, also where warnings are errors: recording never breaks a call."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(Warning):
            warnings.warn(
                f"the recorder lost a request, the call itself is not affected ({one_line(error)})",
                RuntimeWarning,
                stacklevel=3,
            )


def is_recorded(method: str, path: str) -> bool:
    """Whether a call is written down: messages, and batches of them."""
    path = path.split("?")[0]
    return (method == "POST" and path.rstrip("/").endswith(ENDPOINT)) or is_batch(method, path)


class TraceLog:
    """Appends trace lines to a file; safe to use from several threads."""

    def __init__(self, path: str | Path, *, counter: Counter | None = None, contents: bool = False) -> None:
        """Does no I/O yet.

        Args:
            path: the trace file; its folder must exist.
            counter: counts the tokens of each block; default is `best_counter()`.
            contents: also store the request's JSON.
        """
        self.path = Path(path)
        self.lines = 0
        self._counter = counter or best_counter()
        self._contents = contents
        self._blocks: dict[str, tuple[ContentBlock, ...]] = {}
        self._session_lines: dict[str, int] = {}
        self._workspaces: dict[str, str] = {}
        self._batches = Batches()
        self._number = 0
        self._lock = threading.Lock()

    def write(self, exchange: Exchange) -> None:
        """Appends the lines of an exchange.

        Raises:
            OSError: the file cannot be written.
            ValueError: the request is no JSON object.
        """
        with self._lock:
            lines = self._lines(exchange)
            text = [json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines]
            try:
                append(self.path, text)
            except BaseException:
                # later lines must not build on one that is not there
                self._blocks.clear()
                self._session_lines.clear()
                raise
            self.lines += len(lines)

    def _lines(self, exchange: Exchange) -> list[dict[str, Any]]:
        """The line of a message, or of every item whose result has come."""
        if exchange.path.rstrip("/").endswith(ENDPOINT):
            return [self._line(exchange)]
        return [
            {**self._line(item.exchange), "id": f"{item.batch}/{item.name}", "batch": item.batch}
            for item in self._batches.items(exchange)
        ]

    def _line(self, exchange: Exchange) -> dict[str, Any]:
        request = json.loads(exchange.request)
        if not isinstance(request, dict):
            raise ValueError("the request is not a JSON object")
        sent, session = exchange.sent, exchange.session
        betas = [beta.strip() for beta in sent.get("anthropic-beta", "").split(",") if beta.strip()]
        reply = Reply.parse(decoded(exchange.body, exchange.encoding), exchange.status)
        self._number += 1
        asked = {
            name: request[key]
            for name, key in (("geo", "inference_geo"), ("speed", "speed"))
            if request.get(key)
        }
        line = {
            "format": FORMAT,
            "id": f"{session or 'request'}/{self._number}",
            "session": session,
            "t": exchange.start,
            "ttft": round(exchange.began - exchange.start, 6),
            "duration": round(exchange.end - exchange.start, 6),
            "status": exchange.status,
            "retries": exchange.retries,
            "stream": bool(request.get("stream")),
            "api_version": sent.get("anthropic-version", ""),
            "workspace": self._workspaces.setdefault(workspace_of(sent), f"w{len(self._workspaces) + 1}"),
            "model": request.get("model", ""),
            **self._prompt(request, session, betas, ok=exchange.status < 400),
            **asked,
            # the response is the authority on the terms
            **reply.fields(),
        }
        if self._contents:
            line["content"] = request
        return line

    def _prompt(
        self, request: Mapping[str, Any], session: str, betas: Sequence[str], *, ok: bool
    ) -> dict[str, Any]:
        before = self._blocks.get(session, ())
        try:
            parsed = request_json.parse(request, self._counter, betas, known=before)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
            return {"same": 0, "blocks": [], "markers": [], "automatic": None, "params": {}}
        same = 0
        while same < min(len(before), len(parsed.blocks)) and before[same] == parsed.blocks[same]:
            same += 1
        if not ok or self._session_lines.get(session, 0) % WHOLE_EVERY == 0:
            same = 0
        if ok:
            self._blocks[session] = parsed.blocks
            self._session_lines[session] = self._session_lines.get(session, 0) + 1
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
