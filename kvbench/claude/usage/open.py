"""Reads the billed calls of a file or a folder, by its format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

from kvbench.claude.files import files_of, objects_of
from kvbench.claude.prices import PriceBook
from kvbench.claude.traces.checks import check_terms
from kvbench.claude.traces.open import refuse_former_name, without_usage
from kvbench.claude.traces.problems import Problems
from kvbench.claude.usage import litellm, opentelemetry, recordings, transcripts
from kvbench.claude.usage.call import Call
from kvbench.claude.usage.inputs import Inputs, Reading
from kvbench.config.errors import UserError
from kvbench.config.text import counted

UsageFormat = Literal["auto", "claude_code", "recorded", "litellm", "opentelemetry"]
READERS: Mapping[str, ModuleType] = {
    "claude_code": transcripts,
    "recorded": recordings,
    "litellm": litellm,
    "opentelemetry": opentelemetry,
}
SUFFIXES = (".jsonl", ".json")


@dataclass
class BilledCalls:
    """The calls of a file or a folder.

    Attributes:
        calls: in order of time.
        sources: formats that were read, with their schemas.
        notes: what holds for these formats, and how fields were read.
        problems: defects.
        left: number of rows that are no calls to Claude that were billed, by reason.
    """

    calls: list[Call] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    left: Counter[str] = field(default_factory=Counter)


def read_calls(
    path: str | Path,
    prices: PriceBook,
    *,
    format: UsageFormat = "auto",
    input_tokens: Reading = "auto",
    strict: bool = False,
) -> BilledCalls:
    """Reads a file, or all files below a folder; each may have another format.

    Args:
        path: the file or folder; .gz files too.
        prices: calls without a price are left out.
        format: of all files; "auto" detects it per file.
        input_tokens: whether input tokens contain the cached ones, for sources that leave it open.
        strict: stop at the first defect.

    Raises:
        UserError: no such file, none with usage, or no call that can be priced.
    """
    root = Path(path)
    found = BilledCalls(problems=Problems(strict))
    grouped: dict[str, list[Path]] = {}
    files = files_of(root, SUFFIXES)
    if format == "claude_code":
        refuse_former_name(root)
    for file in files:
        name = _guess(file) if format == "auto" else format
        if name is None:
            found.left["files of another format"] += 1
        else:
            grouped.setdefault(name, []).append(file)
    if not grouped:
        known = ", ".join(READERS)
        if other := next(filter(None, map(without_usage, files)), ""):
            raise UserError(
                f"trace={path}: a trace of {other} holds prompts and no usage; experiment=claude_replay prices it"
            )
        raise UserError(f"trace={path}: no file with usage of a known format; give format={known}")
    for name, of_format in grouped.items():
        reader = READERS[name]
        found.sources.append(f"{reader.SOURCE}: {counted(len(of_format), 'file')}")
        inputs = Inputs(input_tokens)
        if name in ("litellm", "opentelemetry"):
            calls = reader.calls(of_format, root, found.problems, inputs, found.left)
        else:
            calls = reader.calls(of_format, root, found.problems)
        kept = [call for call in calls if _priced(call, prices, found.problems)]
        found.calls += kept
        found.notes += getattr(reader, "NOTES", ())
        if name in ("litellm", "opentelemetry"):
            found.notes += inputs.notes(reader.SCHEMA)
        if name == "opentelemetry" and any(call.usage.write_5m for call in kept):
            found.notes.append(opentelemetry.NO_SPLIT)
    if not any(not call.copy for call in found.calls):
        why = [*found.problems.lines, *(f"{count:,} {what}" for what, count in found.left.items())]
        raise UserError(
            f"trace={path}: no billed call could be read; {'; '.join(why[:1]) or 'the files are empty'}"
        )
    found.calls.sort(key=lambda call: call.t)
    return found


def _guess(file: Path) -> str | None:
    for row in objects_of(file):
        for name, reader in READERS.items():
            if reader.looks_so(row):
                return name
    return None


def _priced(call: Call, prices: PriceBook, problems: Problems) -> bool:
    try:
        check_terms(call, prices)
    except UserError as error:
        problems.skip(call.place, str(error))
        return False
    return True
