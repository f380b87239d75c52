"""Isolates live runs: they share the account's cache, so a run would read what an earlier one wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any


class Salter:
    """Middleware that starts every prompt with words unique to the run, so that runs share no prefix."""

    def __init__(self, salt: str) -> None:
        """Takes a salt that no other run uses."""
        self._words = f"(Run {salt}.) "

    def sync(self, request: Any, call_next: Callable[[Any], Any]) -> Any:
        """Middleware of the synchronous client."""
        body = {**request.json, **(request.options.extra_json or {})}
        return call_next(request.copy(body=self.salted(body)))

    def salted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a request's JSON whose first block, in prefix order, begins with the words."""
        copy = deepcopy(dict(body))
        first = _first(copy)
        if isinstance(first, dict):
            key = "description" if "name" in first else "text"
            first[key] = self._words + first.get(key, "")
        elif copy.get("system"):
            copy["system"] = self._words + copy["system"]
        else:
            copy["messages"][0]["content"] = self._words + copy["messages"][0]["content"]
        return copy


def _first(body: Mapping[str, Any]) -> Any:
    """The first tool, system block or message block; may be a bare string."""
    if body.get("tools"):
        return body["tools"][0]
    content = body.get("system") or body["messages"][0]["content"]
    return content if isinstance(content, str) else content[0]
