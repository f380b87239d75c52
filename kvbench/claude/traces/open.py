"""Opens a trace by its path and format."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Literal

from kvbench.claude.prices import PriceBook
from kvbench.claude.traces.claude_code import Choices, ClaudeCodeTrace
from kvbench.claude.traces.mooncake import MooncakeTrace
from kvbench.claude.traces.problems import Problems
from kvbench.claude.traces.recorded import RecordedTrace
from kvbench.config.errors import UserError

Format = Literal["auto", "claude_code", "mooncake", "recorded"]
FileTrace = ClaudeCodeTrace | MooncakeTrace | RecordedTrace


def open_trace(
    path: str | Path,
    prices: PriceBook,
    *,
    format: Format = "auto",
    choices: Choices | None = None,
    model: str = "claude-sonnet-4-6",
    date: datetime.date = datetime.date(2026, 11, 24),
    strict: bool = False,
) -> FileTrace:
    """Opens a trace.

    Args:
        path: a folder of Claude Code sessions, one session file, or a JSONL file.
        prices: the price book.
        format: format of the file; "auto" detects it.
        choices: modelling choices of Claude Code sessions.
        model: model of a Mooncake trace, which contains none.
        date: first day of a trace without dates.
        strict: stop at the first defect.

    Raises:
        UserError: no such file, or an undetectable format.
    """
    path = Path(path)
    if format == "auto":
        format = _guess(path)
    problems = Problems(strict)
    if format == "claude_code":
        return ClaudeCodeTrace(path, prices, choices or Choices(), problems, date)
    if format == "mooncake":
        return MooncakeTrace(path, prices, model, date=date, problems=problems)
    return RecordedTrace(path, prices, problems=problems)


def _guess(path: Path) -> Format:
    if not path.exists():
        raise UserError(f"trace={path}: no such file or folder")
    if path.is_dir() or path.suffix == ".json":
        return "claude_code"
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and "blocks" in row:
                return "recorded"
            if isinstance(row, dict) and "hash_ids" in row:
                return "mooncake"
    raise UserError(f"trace={path}: cannot tell its format; give format=claude_code, mooncake or recorded")
