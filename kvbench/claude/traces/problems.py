"""What was wrong with a trace, line by line, while the rest of it is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvbench.config.errors import UserError


@dataclass
class Problems:
    """Collects one line per defect.

    Attributes:
        strict: raise at the first defect instead of collecting it.
        lines: what was found: place, what, and what was done about it.
        skipped: requests that could not be used.
    """

    strict: bool = False
    lines: list[str] = field(default_factory=list)
    skipped: int = 0

    def skip(self, place: str, what: str) -> None:
        """A request that cannot be used.

        Raises:
            UserError: if strict.
        """
        self.skipped += 1
        self._add(f"{place}: {what}; this request is left out")

    def corrected(self, place: str, what: str) -> None:
        """A request that is used after a correction, which `what` names.

        Raises:
            UserError: if strict.
        """
        self._add(f"{place}: {what}")

    def _add(self, line: str) -> None:
        if self.strict:
            raise UserError(line)
        self.lines.append(line)
