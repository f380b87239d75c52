"""Whether the input tokens of a source contain the cached ones: the commonest double count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from kvbench.claude.request import Usage
from kvbench.config.errors import UserError

Reading = Literal["auto", "with_cached", "without_cached"]


@dataclass
class Inputs:
    """Reads input tokens, and counts how they were read.

    Attributes:
        reading: "with_cached" and "without_cached" for all rows; "auto" is what the source's schema says, unless a
            row contradicts it.
        rows: number of rows by what its input tokens contain.
    """

    reading: Reading = "auto"
    rows: Counter[str] = field(default_factory=Counter)

    def usage(
        self, total: int, read: int, write_5m: int, write_1h: int, output: int, *, known: bool | None = None
    ) -> Usage:
        """Tokens by billing class.

        Args:
            total: input tokens as recorded.
            read: tokens read from the cache.
            write_5m, write_1h: tokens written to it.
            output: output tokens.
            known: whether `total` contains the cached tokens, where the row itself says so.

        Raises:
            UserError: `reading` does not fit the row.
        """
        cached = read + write_5m + write_1h
        contains = self.reading == "with_cached"
        if self.reading == "auto":
            contains = total >= cached if known is None else known
        if contains and total < cached:
            raise UserError(
                f"input tokens {total} are fewer than the cached {cached}; input_tokens=without_cached reads them apart"
            )
        if cached:
            self.rows["contain" if contains else "exclude"] += 1
        return Usage(read, write_5m, write_1h, total - cached if contains else total, output)

    def notes(self, schema: str) -> list[str]:
        """What was read how.

        Args:
            schema: what the schema says.
        """
        lines = [f"{schema}."]
        for what, count in sorted(self.rows.items()):
            lines.append(f"Calls with cached tokens whose input tokens {what} them: {count:,}.")
        if self.reading != "auto":
            lines.append(f"All rows are read as input_tokens={self.reading}, because the command says so.")
        return lines
