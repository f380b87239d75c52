"""Collects the defects of a trace while the rest of it is used."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvbench.config.errors import UserError


@dataclass
class Problems:
    """One line per defect.

    Attributes:
        strict: raise at the first defect instead of collecting it.
        lines: place, defect and how it was handled.
        skipped: number of unusable requests.
    """

    strict: bool = False
    lines: list[str] = field(default_factory=list)
    skipped: int = 0

    def skip(self, place: str, what: str) -> None:
        """Reports an unusable request.

        Raises:
            UserError: if strict.
        """
        self.skipped += 1
        self._add(f"{place}: {what}; this request is left out")

    def corrected(self, place: str, what: str) -> None:
        """Reports a request that is used after the correction named by `what`.

        Raises:
            UserError: if strict.
        """
        self._add(f"{place}: {what}")

    def _add(self, line: str) -> None:
        if self.strict:
            raise UserError(line)
        self.lines.append(line)
