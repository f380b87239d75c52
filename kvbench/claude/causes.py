"""Causes of cache misses: who can do something about each, and what."""

from __future__ import annotations

from dataclasses import dataclass

USER, EXPIRY, PROVIDER, UNKNOWN = "user", "expiry", "provider", "unknown"
FIXABLE = (USER, EXPIRY, PROVIDER, UNKNOWN)


@dataclass(frozen=True)
class Cause:
    """A class of misses.

    Attributes:
        by: who can avoid it: "user", "expiry" (a longer lifetime, or requests closer together), "provider" (no request
            avoids it), "unknown".
        fix: what to do.
    """

    by: str
    fix: str


_SAME = "keep it the same within a conversation"
_LATER = "move it behind what does not change, at best to the end, and put a marker before it"
_APPEND = "only append to the history; change it rarely, and many blocks at a time"
_TOOLS = "send the same tools in the same order; defer_loading adds tools without changing the prefix"

CAUSES: dict[str, Cause] = {
    # what changed
    "model changed": Cause(USER, "keep to one model within a conversation"),
    "speed changed": Cause(USER, _SAME),
    "citations turned on or off": Cause(USER, _SAME),
    "tool_choice changed": Cause(USER, "keep tool_choice the same, or ask for the tool in the last message"),
    "images added or removed": Cause(
        USER, "keep images in the history, or send them from the first request on"
    ),
    "thinking changed": Cause(USER, _SAME),
    "effort changed": Cause(USER, _SAME),
    "output format changed": Cause(USER, _SAME),
    "context_management changed": Cause(USER, _SAME),
    "beta headers changed": Cause(USER, _SAME),
    "parameter changed": Cause(USER, _SAME),
    "server tool added or removed": Cause(USER, _SAME),
    "tools reordered": Cause(USER, "sort the tools"),
    "tools added or removed": Cause(USER, _TOOLS),
    "tool definition changed": Cause(USER, _TOOLS),
    "JSON keys reordered": Cause(USER, "serialise with sorted keys"),
    "string form changed": Cause(USER, "send contents always as strings, or always as lists of blocks"),
    "message boundaries changed": Cause(USER, "keep earlier messages as they were sent"),
    "date or time changed": Cause(USER, _LATER),
    "number or random id changed": Cause(USER, _LATER),
    "system prompt changed": Cause(USER, _LATER),
    "message changed": Cause(USER, _LATER),
    "blocks inserted": Cause(USER, _LATER),
    "blocks removed": Cause(USER, _APPEND),
    "blocks reordered": Cause(USER, "keep their order"),
    "earlier thinking dropped": Cause(PROVIDER, "none: this model drops the thinking of earlier turns"),
    "prefix changed": Cause(UNKNOWN, "record the requests: this trace has no contents"),
    # how it was marked
    "too many breakpoints": Cause(USER, "drop breakpoints until 4 are left"),
    "wrong TTL order": Cause(USER, "put 1h breakpoints before 5m ones"),
    "no cache_control": Cause(USER, "send cache_control"),
    "marker on a block that changes every turn": Cause(USER, "put the marker before the changing block"),
    "shared part not marked": Cause(USER, "put a marker where the shared part ends"),
    "below the minimum": Cause(
        USER, "join the system prompt with other stable text, or use a model with a lower minimum"
    ),
    "lookback exceeded": Cause(
        USER, "put a second marker where an earlier request wrote, within 20 positions"
    ),
    "other lifetime": Cause(USER, "keep one ttl per place (switch U2)"),
    "first response not begun": Cause(USER, "wait for the first response to begin before sending the others"),
    "item of the same batch": Cause(
        USER, "send one request that writes the shared part, with ttl 1h, before the batch"
    ),
    "repeated elsewhere": Cause(
        PROVIDER, "none: the text was sent before, but not at the end of this prefix"
    ),
    # time and chance
    "expired": Cause(EXPIRY, "mark with ttl 1h, or send requests closer together"),
    "lost under load": Cause(PROVIDER, "none (switch U7)"),
    "rounded down": Cause(PROVIDER, "none (switch U8)"),
    "billed, not explained": Cause(
        UNKNOWN, "none: by the rules the entry was there; see the list of differences"
    ),
}
