"""Token counts of blocks, each labelled with its source.

Sources in order of trust: usage reported by the API, a fixture of counts, a reconstructed tokenizer, characters.
Anthropic has published no tokenizer since Claude 2.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kvbench.claude.request import digest
from kvbench.config.errors import UserError
from kvbench.config.numbers import read_json
from kvbench.config.reading import file_text


class Counter(Protocol):
    """Counts the tokens of one block's text."""

    def count(self, text: str, model: str) -> tuple[int, str]:
        """Tokens, and the label of their source."""
        ...


@dataclass(frozen=True)
class CharCounter:
    """Estimate from characters: four ASCII characters per token, 0.8 tokens per other character.

    The second figure is from one Japanese text with a known reconstructed count; neither is general.
    """

    ascii_chars: float = 4.0
    other_tokens: float = 0.8

    def count(self, text: str, model: str) -> tuple[int, str]:
        """See Counter."""
        plain = sum(map(str.isascii, text)) if not text.isascii() else len(text)
        return math.ceil(plain / self.ascii_chars + (len(text) - plain) * self.other_tokens), "estimate"


@dataclass(frozen=True)
class FixtureCounter:
    """Counts from the API's count_tokens, by model and content hash."""

    counts: Mapping[str, Mapping[str, int]]
    fallback: Counter = field(default_factory=CharCounter)

    @classmethod
    def load(cls, path: str | Path, fallback: Counter | None = None) -> FixtureCounter:
        """Reads {model: {content hash in hex: tokens}}.

        Raises:
            UserError: the file is missing or malformed.
        """
        try:
            counts = read_json(file_text(Path(path)))
            valid = all(count >= 0 for table in counts.values() for count in table.values())
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"counts={path}: {error}") from error
        if not valid:
            raise UserError(f"counts={path}: a token count is negative")
        return cls(counts, fallback or CharCounter())

    def count(self, text: str, model: str) -> tuple[int, str]:
        """See Counter."""
        known = self.counts.get(model, {}).get(f"{digest(text):016x}")
        return (known, "fixture") if known is not None else self.fallback.count(text, model)


@dataclass(frozen=True)
class ReconstructedCounter:
    """Counts with the third-party package `ctok`, a reconstructed tokenizer (Python 3.12+), not verified here."""

    token_count: Callable[[str, str], int]

    @classmethod
    def load(cls) -> ReconstructedCounter | None:
        """The counter, or None if the package is not installed."""
        try:
            return cls(importlib.import_module("ctok").token_count)
        except ImportError:
            return None

    def count(self, text: str, model: str) -> tuple[int, str]:
        """See Counter."""
        version = version_of(model)
        # the package counts a one-message request: subtract the overhead of a message
        return self.token_count(text, version) - self.token_count("", version), "reconstructed"


def version_of(model: str) -> str:
    """The version in a model id: claude-sonnet-4-6 gives 4.6, claude-3-5-haiku-20241022 gives 3.5."""
    numbers = [part for part in model.split("-") if part.isdigit() and len(part) < 3]
    return ".".join(numbers) or "3.0"


def best_counter(fixture: str | Path | None = None) -> Counter:
    """The most trusted available counter: fixture, then reconstructed, then characters."""
    fallback: Counter = ReconstructedCounter.load() or CharCounter()
    return FixtureCounter.load(fixture, fallback) if fixture else fallback


TRUST = ("usage", "fixture", "scaled", "reconstructed", "estimate")


def weakest(sources: set[str]) -> str:
    """The least trusted label among several."""
    return max(sources, key=TRUST.index) if sources else "usage"
