"""Opens a trace by its path and format."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal, get_args

from kvbench.claude.files import files_of, objects_of
from kvbench.claude.prices import NoPrices, PriceBook
from kvbench.claude.traces.kv_cache_tester import Choices, KvCacheTesterTrace
from kvbench.claude.traces.mooncake import MooncakeTrace
from kvbench.claude.traces.problems import Problems
from kvbench.claude.traces.recorded import RecordedTrace
from kvbench.claude.traces.transcripts import TranscriptTrace
from kvbench.claude.usage import transcripts
from kvbench.config.errors import UserError

Format = Literal["auto", "kv_cache_tester", "claude_code", "mooncake", "recorded"]
FORMATS: tuple[str, ...] = get_args(Format)[1:]
FileTrace = KvCacheTesterTrace | MooncakeTrace | RecordedTrace  # transcripts are a kind of recording


def open_trace(
    path: str | Path,
    prices: PriceBook | None,
    *,
    format: Format = "auto",
    choices: Choices | None = None,
    model: str = "claude-sonnet-4-6",
    date: datetime.date = datetime.date(2026, 11, 24),
    strict: bool = False,
) -> FileTrace:
    """Opens a trace.

    Args:
        path: a file, or a folder with files of one format, also in sub-folders and gzipped; a Mooncake trace is a file.
        prices: the price book; None for uses without prices, where every model is known and any day will do.
        format: format of the files; "auto" detects it.
        choices: modelling choices of kv-cache-tester's sessions.
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
    prices = prices or NoPrices()
    if format == "claude_code":
        refuse_former_name(path)
        return TranscriptTrace(path, prices, problems=problems)
    if format == "kv_cache_tester":
        return KvCacheTesterTrace(path, prices, choices or Choices(), problems, date)
    if format == "mooncake":
        return MooncakeTrace(path, prices, model, date=date, problems=problems)
    return RecordedTrace(path, prices, problems=problems)


def _guess(path: Path) -> Format:
    for file in files_of(path, (".json", ".jsonl")):
        for row in objects_of(file):
            if (found := _format(row)) is not None:
                return found
    raise UserError(
        f"trace={path}: cannot tell its format; give format={', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    )


def _format(row: object) -> Format | None:
    """Format of a file by its first object."""
    if not isinstance(row, dict):
        return None
    if "block_size" in row and "requests" in row:
        return "kv_cache_tester"
    if "blocks" in row:
        return "recorded"
    if "hash_ids" in row:
        return "mooncake"
    return "claude_code" if transcripts.looks_so(row) else None


def without_usage(path: Path) -> str:
    """Format of a file's trace if it holds prompts and no usage, "" otherwise."""
    found = next((name for name in map(_format, objects_of(path)) if name is not None), "")
    return found if found in ("kv_cache_tester", "mooncake") else ""


def refuse_former_name(path: Path) -> None:
    """The format of kv-cache-tester had the name claude_code.

    Raises:
        UserError: the first file is one of its sessions.
    """
    for file in files_of(path, (".json", ".jsonl"))[:1]:
        if "kv_cache_tester" in map(_format, objects_of(file)):
            raise UserError(
                f"trace={path}: {file.name} is a session of kv-cache-tester; give format=kv_cache_tester (claude_code "
                "are Claude Code's own transcripts)"
            )
