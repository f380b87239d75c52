"""Parses usage and errors from the bytes of a Messages API response, streamed or not."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvbench.claude.request import Usage


def decoder(encoding: str) -> Callable[[bytes], bytes]:
    """Decompressor of a whole body; unknown encodings give an empty body."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return lambda data: data
    if name in ("gzip", "deflate"):
        return lambda data: zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(data)
    return lambda data: b""


@dataclass
class Reply:
    """Usage and errors of a response.

    Attributes:
        usage: tokens by billing class, None if not reported.
        events: the usage objects of message_start and message_delta as sent (streams only).
        error: type and message of an error body.
        notes: inconsistencies.
        diagnostics: the API's own account of a cache miss, as sent.
    """

    usage: Usage | None = None
    events: list[Mapping[str, Any]] = field(default_factory=list)
    error: dict[str, str] | None = None
    notes: list[str] = field(default_factory=list)
    diagnostics: Mapping[str, Any] | None = None

    @classmethod
    def parse(cls, body: bytes, status: int) -> Reply:
        """Reads a response body."""
        reply = cls()
        if not body:
            reply.notes.append("the response body could not be read")
            return reply
        if body.lstrip().startswith(b"{"):
            content = _load(body)
            if status >= 400 or content.get("type") == "error":
                reply._set_error(content)
            else:
                reply._set_usage(content.get("usage") or {})
                reply.diagnostics = content.get("diagnostics")
            return reply
        merged: dict[str, Any] = {}
        for event in events(body):
            if event.get("type") == "message_start":
                found = event["message"].get("usage")
                reply.diagnostics = event["message"].get("diagnostics")
            elif event.get("type") == "message_delta":
                found = event.get("usage")
                reply.diagnostics = event.get("diagnostics") or reply.diagnostics
            elif event.get("type") == "error":
                reply._set_error(event)
                continue
            else:
                continue
            if found:
                reply.events.append(found)
                # the delta is cumulative; the 5m/1h split is only in message_start
                merged.update({key: value for key, value in found.items() if value is not None})
        if merged:
            reply._set_usage(merged)
        return reply

    def fields(self) -> dict[str, Any]:
        """The fields of a trace line."""
        found: dict[str, Any] = {}
        if self.usage is not None:
            found["usage"] = {
                name: getattr(self.usage, name)
                for name in ("read", "write_5m", "write_1h", "uncached", "output")
            }
        if self.events:
            found["usage_events"] = self.events
        if self.diagnostics:
            found["diagnostics"] = self.diagnostics
        if self.error:
            found["error"] = self.error
        if self.notes:
            found["notes"] = self.notes
        return found

    def _set_usage(self, usage: Mapping[str, Any]) -> None:
        created = usage.get("cache_creation_input_tokens") or 0
        split = usage.get("cache_creation") or {}
        five, hour = split.get("ephemeral_5m_input_tokens"), split.get("ephemeral_1h_input_tokens")
        if five is None and hour is None:
            five, hour = created, 0
            if created:
                self.notes.append("no 5m/1h split reported; all writes count as 5m")
        five, hour = five or 0, hour or 0
        if five + hour != created:
            self.notes.append(
                f"cache writes do not add up: {five} + {hour} is not {created}; the total is kept"
            )
            five = max(0, created - hour)
            hour = created - five
        self.usage = Usage(
            usage.get("cache_read_input_tokens") or 0,
            five,
            hour,
            usage.get("input_tokens") or 0,
            usage.get("output_tokens") or 0,
        )

    def _set_error(self, content: Mapping[str, Any]) -> None:
        error = content.get("error") or {}
        self.error = {"type": str(error.get("type", "")), "message": str(error.get("message", ""))}


def events(body: bytes) -> Iterator[dict[str, Any]]:
    """The JSON of every event of a stream."""
    for line in body.decode(errors="replace").splitlines():
        if line.startswith("data:"):
            content = _load(line[5:].encode())
            if content:
                yield content


def _load(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
