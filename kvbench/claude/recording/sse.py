"""Parses usage and errors from the bytes of a Messages API response, streamed or not."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvbench.claude.usage_json import Billed, read_usage
from kvbench.config.errors import UserError


def decoded(body: bytes, encoding: str) -> bytes:
    """A body without its content encoding; empty if the encoding is unknown or the body damaged."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in ("gzip", "deflate"):
        return b""
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(body)
    except zlib.error:
        return b""


@dataclass
class Reply:
    """Usage and errors of a response; one that is not as documented has notes instead.

    Attributes:
        billed: what was billed and on which terms, None if not reported.
        events: the usage objects of message_start and message_delta as sent (streams only).
        error: type and message of an error body.
        notes: inconsistencies.
        diagnostics: the API's own account of a cache miss, as sent.
    """

    billed: Billed | None = None
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
                reply._set_usage(content.get("usage"))
                reply._set_diagnostics(content)
            return reply
        merged: dict[str, Any] = {}
        for event in events(body):
            if event.get("type") == "error":
                reply._set_error(event)
                continue
            if event.get("type") not in ("message_start", "message_delta"):
                continue
            # the usage of a delta stands beside it
            holder = event.get("message") if event["type"] == "message_start" else event
            if not isinstance(holder, Mapping):
                reply.notes.append(f"an event {event['type']} without its message")
                continue
            reply._set_diagnostics(holder)
            found = holder.get("usage")
            if isinstance(found, Mapping):
                reply.events.append(found)
                # the delta is cumulative; the 5m/1h split is only in message_start
                merged.update({key: value for key, value in found.items() if value is not None})
        if merged:
            reply._set_usage(merged)
        return reply

    def fields(self) -> dict[str, Any]:
        """The fields of a trace line."""
        found: dict[str, Any] = {}
        if self.billed is not None:
            usage, billed = self.billed.usage, self.billed
            found["usage"] = {
                name: getattr(usage, name) for name in ("read", "write_5m", "write_1h", "uncached", "output")
            }
            terms = {"geo": billed.geo, "speed": billed.speed, "service_tier": billed.tier}
            found |= {name: value for name, value in terms.items() if value}
            if billed.tier == "batch":
                found["batch"] = True
            if billed.server_tools:
                found["server_tools"] = dict(billed.server_tools)
        if self.events:
            found["usage_events"] = self.events
        if self.diagnostics:
            found["diagnostics"] = self.diagnostics
        if self.error:
            found["error"] = self.error
        if self.notes:
            found["notes"] = self.notes
        return found

    def _set_usage(self, usage: object) -> None:
        if not isinstance(usage, Mapping) or not usage:
            self.notes.append("no usage reported")
            return
        try:
            self.billed = read_usage(usage)
        except UserError as error:
            self.notes.append(f"usage not as documented: {error}")
            return
        self.notes += self.billed.notes

    def _set_diagnostics(self, content: Mapping[str, Any]) -> None:
        found = content.get("diagnostics")
        if isinstance(found, Mapping):
            self.diagnostics = found

    def _set_error(self, content: Mapping[str, Any]) -> None:
        error = content.get("error")
        if not isinstance(error, Mapping):
            self.notes.append("an error without its object")
            error = {}
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
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
