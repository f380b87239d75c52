"""Token counts from the API's count_tokens, saved to a file so that later runs need no key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kvbench.claude.request import digest
from kvbench.config.errors import UserError
from kvbench.config.files import write

KEY = "ANTHROPIC_API_KEY"
PROBE = "."  # assumed to be one token: the rest of its count is the overhead of a message


class ApiCounter:
    """Counts tokens with the API (free of charge, rate-limited) and caches the counts; implements `tokens.Counter`.

    Each text is sent as the only message of a request, and the overhead of a message is subtracted. Tools and images
    may count differently where they really stand: the API gives no such breakdown.
    """

    def __init__(self, client: Any) -> None:
        """A counter without cached counts.

        Args:
            client: an `anthropic.Anthropic`.
        """
        self.counts: dict[str, dict[str, int]] = {}
        self._client = client
        self._overheads: dict[str, int] = {}

    @classmethod
    def from_environment(cls) -> ApiCounter:
        """A counter with the API key from the environment.

        Raises:
            UserError: no key.
        """
        if not os.environ.get(KEY):
            raise UserError(f"take_counts=true needs {KEY} in the environment")
        import anthropic

        return cls(anthropic.Anthropic())

    def count(self, text: str, model: str) -> tuple[int, str]:
        """See Counter."""
        if not text:
            return 0, "fixture"
        table = self.counts.setdefault(model, {})
        key = f"{digest(text):016x}"
        if key not in table:
            if model not in self._overheads:
                self._overheads[model] = self._request(PROBE, model) - 1
            table[key] = self._request(text, model) - self._overheads[model]
        return table[key], "fixture"

    def save(self, path: str | Path) -> None:
        """Writes the counts in the format of `tokens.FixtureCounter.load`."""
        write(path, json.dumps(self.counts, indent=1, sort_keys=True, allow_nan=False) + "\n")

    def _request(self, text: str, model: str) -> int:
        message = {"role": "user", "content": text}
        return self._client.messages.count_tokens(model=model, messages=[message]).input_tokens
