"""SDK middleware that sets a placement's markers in each request's JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvbench.claude import request_json
from kvbench.claude.placements import Placement
from kvbench.claude.request import TTL_NAMES, Hashing, Request
from kvbench.claude.tokens import Counter


class Placer:
    """Replaces the markers of every request by those of a placement."""

    def __init__(
        self, placement: Placement, counter: Counter, name: Callable[[int], str] | None = None
    ) -> None:
        """A placer before its first request.

        Args:
            placement: chooses the blocks.
            counter: counts tokens.
            name: id of the n-th request (from 1), if the placement is a plan by request id.
        """
        self._placement = placement
        self._counter = counter
        self._name = name or str
        self._count = 0

    def sync(self, request: Any, call_next: Callable[[Any], Any]) -> Any:
        """Middleware of the synchronous client."""
        if not request.url.split("?")[0].endswith("/v1/messages"):
            return call_next(request)
        return call_next(
            request.copy(body=self.marked({**request.json, **(request.options.extra_json or {})}))
        )

    def marked(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request's JSON with the placement's markers."""
        self._count += 1
        plain = request_json.with_markers(body, {})
        parsed = request_json.parse(plain, self._counter)
        built: Request = request_json.build_request(
            parsed, id=self._name(self._count), t=0.0, model=str(body["model"]), hashing=Hashing()
        )
        # node indices start at 1
        return request_json.with_markers(
            plain, {node.index - 1: TTL_NAMES[ttl] for node, ttl in self._placement(built)}
        )
