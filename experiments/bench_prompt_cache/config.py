"""Configuration of `bench_prompt_cache`."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.config.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Which sessions to replay.

    Attributes:
        run_dir: folder for table.md and bench.csv.
        trace: folder of kv-cache-tester's sessions; None generates sessions.
        sessions: number of generated sessions.
    """

    run_dir: str
    trace: str | None = None
    sessions: int = 40

    def __post_init__(self) -> None:
        if self.sessions < 1:
            raise UserError(f"sessions: {self.sessions} is not allowed, give a positive whole number")
