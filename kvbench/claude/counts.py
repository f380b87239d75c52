"""Takes token counts from the API's count_tokens, once, for a file that later runs read without a key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kvbench.claude.request import digest
from kvbench.config.errors import UserError

KEY = "ANTHROPIC_API_KEY"
PROBE = "."  # taken to be one token: what a request with it counts beyond 1 is the frame of a message


class ApiCounter:
    """Counts with the API (free of charge, rate-limited) and remembers every count; see `tokens.Counter`.

    Each text is sent as the one message of a request, and what a message's frame counts is taken off. What tools and
    images count in their own places may differ: the API gives no such breakdown.
    """

    def __init__(self, client: Any) -> None:
        """A counter that has asked nothing yet.

        Args:
            client: an `anthropic.Anthropic`.
        """
        self.counts: dict[str, dict[str, int]] = {}
        self._client = client
        self._frames: dict[str, int] = {}

    @classmethod
    def from_environment(cls) -> ApiCounter:
        """A counter with the key of the environment.

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
            if model not in self._frames:
                self._frames[model] = self._ask(PROBE, model) - 1
            table[key] = self._ask(text, model) - self._frames[model]
        return table[key], "fixture"

    def save(self, path: str | Path) -> None:
        """Writes what was counted, as `tokens.FixtureCounter.load` reads it."""
        Path(path).write_text(json.dumps(self.counts, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def _ask(self, text: str, model: str) -> int:
        message = {"role": "user", "content": text}
        return self._client.messages.count_tokens(model=model, messages=[message]).input_tokens
