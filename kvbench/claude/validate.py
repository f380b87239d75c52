"""The documented reasons for a 400 on cache_control, checked before anything is served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvbench.claude.request_json import TTL_SECONDS, markable
from kvbench.claude.rules import MAX_MARKERS

Json = Mapping[str, Any]
THINKING_TYPES = ("thinking", "redacted_thinking")


def errors(body: Json, *, batch: bool = False) -> list[str]:
    """Errors in a request's caching, worded as by the API; empty if it is valid.

    The wording follows public issue reports; it is not documented and may change.

    Args:
        body: the request's JSON.
        batch: the request is an entry of a batch.
    """
    found: list[str] = []
    marks = list(_marks(body))
    for path, item, control in marks:
        found += _marker_errors(path, item, control)
    found += _nested(body)
    top = body.get("cache_control")
    if top is not None:
        found += _control("cache_control", top)
    if not found:
        found += _together(body, marks, top)
    if body.get("max_tokens") == 0:
        found += _prewarm(body, batch)
    return found


def _marks(body: Json) -> Iterator[tuple[str, Json, Json]]:
    """Every block that carries a marker, in prefix order: (path, block, cache_control)."""
    for path, item in _blocks(body):
        control = item.get("cache_control")
        if control is not None:
            yield path, item, control
            continue
        parts = item.get("content")
        if item.get("type") == "tool_result" and isinstance(parts, list) and parts:
            inner = parts[-1].get("cache_control")
            if inner is not None:
                yield f"{path}.content.{len(parts) - 1}", parts[-1], inner


def _blocks(body: Json) -> Iterator[tuple[str, Json]]:
    for number, tool in enumerate(body.get("tools") or ()):
        yield f"tools.{number}", tool
    system = body.get("system")
    if isinstance(system, list):
        for number, item in enumerate(system):
            yield f"system.{number}", item
    for number, message in enumerate(body.get("messages") or ()):
        content = message.get("content")
        if isinstance(content, list):
            for part, item in enumerate(content):
                yield f"messages.{number}.content.{part}", item


def _marker_errors(path: str, item: Json, control: Json) -> list[str]:
    if path.startswith("tools.") and item.get("defer_loading"):
        return [
            f"Tool '{item.get('name')}' cannot have both defer_loading=true and cache_control set. "
            "Tools with defer_loading cannot use prompt caching."
        ]
    if item.get("type") in THINKING_TYPES:
        return [f"{path}.{item['type']}.cache_control: Extra inputs are not permitted"]
    if not markable(item):
        return [f"{path}.text: cache_control cannot be set for empty text blocks"]
    return _control(f"{path}.cache_control", control)


def _control(path: str, control: Json) -> list[str]:
    if not isinstance(control, Mapping) or control.get("type") != "ephemeral":
        return [f"{path}.type: Input should be 'ephemeral'"]
    if control.get("ttl") not in (None, *TTL_SECONDS):
        return [f"{path}.ttl: Input should be '5m' or '1h'"]
    return []


def _nested(body: Json) -> list[str]:
    """Errors for markers inside a block; only the block itself, or its last part, may be marked."""
    found: list[str] = []
    for path, item in _blocks(body):
        # only toolsets have configs
        configs: Mapping[str, Json] = item.get("configs") or {}
        for name, config in configs.items():
            if config.get("cache_control") is not None:
                found.append(f"{path}.configs.{name}.cache_control: Extra inputs are not permitted")
        parts = item.get("content")
        if item.get("type") != "tool_result" or not isinstance(parts, list):
            continue
        for number, part in enumerate(parts[:-1]):
            if part.get("cache_control") is not None:
                found.append(f"{path}.content.{number}.cache_control: only the last block may be marked")
    return found


def _together(body: Json, marks: list[tuple[str, Json, Json]], top: Json | None) -> list[str]:
    ttls = [(path, control.get("ttl") or "5m") for path, _, control in marks]
    if top is not None:
        path, last = _last_markable(body)
        existing = (last.get("cache_control") if last is not None else None) or None
        ttl = top.get("ttl") or "5m"
        if existing is not None and (existing.get("ttl") or "5m") != ttl:
            return [f"cache_control: automatic caching with ttl='{ttl}' conflicts with the ttl on {path}"]
        if existing is None and last is not None:
            if len(marks) == MAX_MARKERS:
                return ["cache_control: automatic caching needs one of the 4 breakpoints, all are in use"]
            ttls.append(("cache_control", ttl))
    if len(marks) > MAX_MARKERS:
        return [f"A maximum of 4 blocks with cache_control may be provided. Found {len(marks)}."]
    seen_short = False
    for path, ttl in ttls:
        if ttl == "1h" and seen_short:
            place = path if path == "cache_control" else f"{path}.cache_control"
            return [
                f"{place}.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' "
                "cache_control block. Note that blocks are processed in the following order: "
                "`tools`, `system`, `messages`."
            ]
        seen_short = seen_short or ttl == "5m"
    return []


def _last_markable(body: Json) -> tuple[str, Json | None]:
    """The block that automatic caching would mark; a bare string counts as an unmarked block."""
    for number in range(len(body.get("messages") or ()) - 1, -1, -1):
        content = body["messages"][number].get("content")
        if isinstance(content, str):
            if content:
                return f"messages.{number}", {}
            continue
        for part in range(len(content or ()) - 1, -1, -1):
            if markable(content[part]):
                return f"messages.{number}.content.{part}", content[part]
    system = body.get("system")
    if isinstance(system, str) and system:
        return "system", {}
    for name, items in (("system", system), ("tools", body.get("tools"))):
        for number in range(len(items or ()) - 1, -1, -1):
            if isinstance(items, list) and markable(items[number]):
                return f"{name}.{number}", items[number]
    return "", None


def _prewarm(body: Json, batch: bool) -> list[str]:
    """Errors for options that max_tokens 0 does not allow (R26)."""
    thinking = (body.get("thinking") or {}).get("type", "disabled")
    requested = {
        "stream": bool(body.get("stream")),
        "thinking": thinking != "disabled",
        "output_config.format": bool((body.get("output_config") or {}).get("format")),
        "tool_choice": (body.get("tool_choice") or {}).get("type") in ("any", "tool"),
        "batches": batch,
    }
    return [f"max_tokens: 0 cannot be combined with {name}" for name, used in requested.items() if used]
