"""Reads and checks the file of a user's own questions."""

import difflib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from kvbench.config.errors import UserError
from kvbench.tasks import patterns
from kvbench.tasks.normalise import is_blank

#: more than any model's positions
MOST_TOKENS = 100_000_000
_ASKED = ("question", "answers", "answer_prefix", "max_new_tokens")
_ONE = ("context", *_ASKED, "id")
_CONVERSATION = ("context", "turns", "id")


def read_records(path: str, regex: bool) -> list[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a file; a file that has not changed is not read again.

    Args:
        path: the file.
        regex: whether answers are regular expressions.

    Raises:
        UserError: the file cannot be read, or a line of it is no question or conversation.
    """
    try:
        file = Path(path).expanduser()
        stat = file.stat()
        if not file.is_file():
            raise UserError(f"path: {path} is not a file")
        return _read(file, stat.st_mtime_ns, stat.st_size, regex)
    except UserError:
        raise
    # a path with a null character, or with the home of a user who does not exist
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"path: {path} cannot be read as UTF-8 text ({error})") from None


@lru_cache(maxsize=4)
def _read(file: Path, mtime_ns: int, size: int, regex: bool) -> list[tuple[int, dict[str, Any]]]:
    records = []
    for line, text in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not text.strip():
            continue
        record = _parsed(text, f"path: {file} line {line}")
        fault = _fault(record, regex)
        if fault:
            raise UserError(f"path: {file} line {line}: {fault}")
        records.append((line, record))
    if not records:
        raise UserError(f"path: {file} has no lines")
    return records


def _parsed(text: str, place: str) -> Any:
    try:
        record = json.loads(text, object_pairs_hook=_object, parse_constant=_not_json)
        # JSON allows lone surrogates, which cannot be encoded
        json.dumps(record, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{place} is not JSON of a question (nested too deeply)") from None
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({error})") from None
    return record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {patterns.shown(twice)} is given twice")
    return record


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _fault(record: Any, regex: bool) -> str | None:
    """The defect of a line, or None."""
    if not isinstance(record, dict):
        return "not an object {context, question, answers}"
    turns = "turns" in record
    if fault := _unknown(record, _CONVERSATION if turns else _ONE):
        return fault
    for key in ("context",) if turns else ("context", "question", "answers"):
        if key not in record:
            return f"{key} is missing"
    if not isinstance(record["context"], str):
        return "context must be text"
    if type(record.get("id", "")) not in (str, int):
        return "id must be text or a whole number"
    if not turns:
        return _fault_of_turn(record, record["context"], regex)
    if regex:
        return "turns need answers as text, not patterns (scorer=regex)"
    if not isinstance(record["turns"], list) or not record["turns"]:
        return "turns must be a list of {question, answers}, at least one"
    for number, turn in enumerate(record["turns"], start=1):
        if not isinstance(turn, dict) or "question" not in turn or "answers" not in turn:
            return f"turn {number}: not an object {{question, answers}}"
        context = record["context"] if number == 1 else ""
        if fault := _unknown(turn, _ASKED) or _fault_of_turn(turn, context, regex):
            return f"turn {number}: {fault}"
    return None


def _unknown(record: dict[str, Any], known: Sequence[str]) -> str | None:
    for name in record:
        if name not in known:
            close = difflib.get_close_matches(name[:80], known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            return f"there is no key {patterns.shown(name)}{hint}; allowed: {', '.join(known)}"
    return None


def _fault_of_turn(turn: dict[str, Any], context: str, regex: bool) -> str | None:
    for key in ("question", "answer_prefix"):
        if not isinstance(turn.get(key, ""), str):
            return f"{key} must be text"
    if not (context + turn["question"]).strip():
        return "context and question are both blank" if "context" in turn else "question is blank"
    answers = [turn["answers"]] if isinstance(turn["answers"], str) else turn["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        return "answers must be a list of texts, at least one, none of them empty"
    if any(map(is_blank, answers)):
        return "answers must be a list of texts, at least one, none of them empty or blank"
    limit = turn.get("max_new_tokens", 1)
    if type(limit) is not int or not 1 <= limit <= MOST_TOKENS:
        return f"max_new_tokens must be a positive whole number, up to {MOST_TOKENS:,}"
    if regex:
        for pattern in answers:
            if fault := patterns.fault(pattern):
                return f"answers: {patterns.shown(pattern)} is not a regular expression ({fault})"
    return None
