"""One billed call, without its prompt."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvbench.claude.request import Usage
from kvbench.config.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call and what it was billed.

    Attributes:
        id: unique within its source.
        t: start, seconds since the epoch, or the earliest time that the source has for it.
        model: model id as recorded.
        usage: tokens by billing class.
        session: the conversation; a sub-agent has its own. "" if the source names none.
        agent: sub-agent or side chain, "" for the main conversation.
        batch: sent through the Batch API.
        geo: `inference_geo` as billed.
        speed: "fast", "standard" or "".
        server_tools: requests of Anthropic's own tools, by name.
        compacted: the conversation was compacted since its previous call.
        copy: the same call stands in another file, where it is counted.
        recorded_usd: the source's own figure for its cost.
        place: file and line.
    """

    id: str
    t: float
    model: str
    usage: Usage
    session: str = ""
    agent: str = ""
    batch: bool = False
    geo: str = ""
    speed: str = ""
    server_tools: Mapping[str, int] = field(default_factory=dict)
    compacted: bool = False
    copy: bool = False
    recorded_usd: float | None = None
    place: str = ""


def seconds(text: object) -> float:
    """Seconds since the epoch of an ISO 8601 time; without a zone it is UTC.

    Raises:
        UserError: not a time.
    """
    try:
        time = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        raise UserError(f"time {text!r}: must be as 2026-11-24T12:00:00Z") from None
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp()
