"""Placements of cache_control on the requests of a trace."""

from __future__ import annotations

from collections.abc import Callable

from kvbench.claude.request import MESSAGES, Marker, Node, Request, last_markable
from kvbench.config.errors import UserError

FIVE, HOUR = 300, 3600

Placement = Callable[[Request], tuple[Marker, ...]]


def none(request: Request) -> tuple[Marker, ...]:
    """No cache_control."""
    return ()


def as_sent(request: Request) -> tuple[Marker, ...]:
    """The markers recorded in the trace."""
    return request.markers


def tools_system(request: Request) -> tuple[Marker, ...]:
    """Last tool and last system block, 5m, as in the article's explicit code."""
    return _join((request.tools_end, FIVE), (request.system_end, FIVE))


def automatic(request: Request) -> tuple[Marker, ...]:
    """Top-level cache_control, 5m: one marker on the last block that may carry one (R4)."""
    return _join((request.head, FIVE))


def automatic_1h(request: Request) -> tuple[Marker, ...]:
    """Top-level cache_control with ttl 1h."""
    return _join((request.head, HOUR))


def explicit_four(request: Request) -> tuple[Marker, ...]:
    """Last tool, last system block, end of the previous user turn, end of the prompt; all 5m."""
    return _join(
        (request.tools_end, FIVE),
        (request.system_end, FIVE),
        (previous_turn(request.head), FIVE),
        (request.head, FIVE),
    )


def middleware_5m(request: Request) -> tuple[Marker, ...]:
    """What AnthropicPromptCachingMiddleware(ttl="5m") marks: last tool, last system block, automatic."""
    return _join((request.tools_end, FIVE), (request.system_end, FIVE), (request.head, FIVE))


def middleware_1h(request: Request) -> tuple[Marker, ...]:
    """What AnthropicPromptCachingMiddleware(ttl="1h") marks."""
    return _join((request.tools_end, HOUR), (request.system_end, HOUR), (request.head, HOUR))


def stable_1h_tail_5m(request: Request) -> tuple[Marker, ...]:
    """1h on tools and system, 5m on the previous user turn and on the end of the prompt."""
    return _join(
        (request.tools_end, HOUR),
        (request.system_end, HOUR),
        (previous_turn(request.head), FIVE),
        (request.head, FIVE),
    )


def registry() -> dict[str, Placement]:
    """All placements by name."""
    return {
        function.__name__: function
        for function in (
            none,
            as_sent,
            tools_system,
            automatic,
            automatic_1h,
            explicit_four,
            middleware_5m,
            middleware_1h,
            stable_1h_tail_5m,
        )
    }


def named(name: str) -> Placement:
    """A placement by name.

    Raises:
        UserError: unknown name; the message lists the allowed ones.
    """
    known = registry()
    if name not in known:
        raise UserError(f"placement={name}: allowed are {', '.join(sorted(known))}")
    return known[name]


def previous_turn(head: Node) -> Node | None:
    """Last markable block of the user message before the last one; walks back over the last turn only."""
    node: Node | None = head
    while node is not None and node.tier == MESSAGES and node.message > head.message - 2:
        node = node.parent
    if node is None or node.tier < MESSAGES:
        return None
    return last_markable(node)


def _join(*places: tuple[Node | None, int]) -> tuple[Marker, ...]:
    """Markers on the nearest markable blocks, in order; the first marker wins if two share a block."""
    chosen: list[Marker] = []
    for node, ttl in places:
        node = last_markable(node)
        if node is None:
            continue
        if chosen and chosen[-1][0].index >= node.index:
            continue
        chosen.append((node, ttl))
    return tuple(chosen)
