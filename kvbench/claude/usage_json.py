"""The usage object of a Messages API response: what was billed, and on which terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvbench.claude.request import Usage
from kvbench.claude.traces.checks import text_of, whole

_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_SPLIT = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")


@dataclass(frozen=True)
class Billed:
    """What a response says was billed.

    Attributes:
        usage: tokens by billing class.
        geo: `inference_geo`, "" if not reported.
        speed: "fast", "standard", "" if not reported.
        tier: `service_tier`, "" if not reported.
        server_tools: requests of Anthropic's own tools, by name.
        notes: inconsistencies.
    """

    usage: Usage
    geo: str = ""
    speed: str = ""
    tier: str = ""
    server_tools: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_usage(content: Mapping[str, Any]) -> Billed:
    """Reads a usage object.

    With `iterations` (server-side compaction), the bill is their sum: the fields beside it leave some of them out
    (litellm 1.109.1, llms/anthropic/chat/transformation.py, reads them so).

    Raises:
        UserError: a count that is none.
    """
    parts: Sequence[Mapping[str, Any]] = [content]
    iterations = content.get("iterations")
    if isinstance(iterations, list) and iterations and all(isinstance(part, Mapping) for part in iterations):
        parts = iterations
    uncached, output, read, created = (
        sum(column) for column in zip(*(_counts(part) for part in parts), strict=True)
    )
    splits = [_split(part) for part in parts]
    notes: list[str] = []
    if all(split is None for split in splits):
        # the split of the whole may stand beside the iterations
        splits = [_split(content)]
    five = sum(split[0] for split in splits if split)
    hour = sum(split[1] for split in splits if split)
    if all(split is None for split in splits):
        five = created
        if created:
            notes.append("no 5m/1h split reported; all writes count as 5m")
    if five + hour != created:
        notes.append(f"cache writes do not add up: {five} + {hour} is not {created}; the total is kept")
        five = max(0, created - hour)
        hour = created - five
    tools = content.get("server_tool_use")
    return Billed(
        Usage(read, five, hour, uncached, output),
        text_of(content, "inference_geo"),
        text_of(content, "speed"),
        text_of(content, "service_tier"),
        {str(name): whole(str(name), count) for name, count in tools.items() if count}
        if isinstance(tools, Mapping)
        else {},
        tuple(notes),
    )


def _counts(content: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(whole(name, content.get(name) or 0) for name in _COUNTS)


def _split(content: Mapping[str, Any]) -> tuple[int, int] | None:
    split = content.get("cache_creation")
    if not isinstance(split, Mapping) or all(split.get(name) is None for name in _SPLIT):
        return None
    five, hour = (whole(name, split.get(name) or 0) for name in _SPLIT)
    return five, hour
