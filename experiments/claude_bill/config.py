"""Configuration of `claude_bill`."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.claude.request import TTL_SECONDS
from kvbench.claude.usage.inputs import Reading
from kvbench.claude.usage.open import UsageFormat
from kvbench.config.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BillConfig:
    """Which files, and how they are read.

    Attributes:
        trace: a file, or a folder with sub-folders.
        format: format of all files; auto detects it per file.
        input_tokens: whether input tokens contain the cached ones, where the format leaves it open.
        ping_every: seconds between keep-alive pings.
        ping_for: seconds after the last call after which no more are sent.
        prices: price file or folder, null for the default.
        strict: stop at the first defect.
        run_dir: output folder.
    """

    run_dir: str
    trace: str | None = None
    format: UsageFormat = "auto"
    input_tokens: Reading = "auto"
    ping_every: float = 240.0
    ping_for: float = 3600.0
    prices: str | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if self.trace is None:
            raise UserError("trace: give a file or folder, as trace=$HOME/.claude/projects")
        if not 0 < self.ping_every < TTL_SECONDS["5m"]:
            raise UserError(
                f"ping_every: {self.ping_every:g} is not allowed, give more than 0 and less than 300, the lifetime of "
                "an entry in seconds"
            )
        if not 0 <= self.ping_for < float("inf"):
            raise UserError(f"ping_for: {self.ping_for:g} is not allowed, give seconds, 0 or more")
