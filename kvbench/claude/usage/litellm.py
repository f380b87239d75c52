"""Spend logs of the litellm proxy: rows of `LiteLLM_SpendLogs` as JSON, from its /spend/logs or from the database.

Schema: litellm 1.109.1, proxy/schema.prisma (the table), proxy/spend_tracking/spend_tracking_utils.py (its metadata),
llms/anthropic/chat/transformation.py (`calculate_usage`: `prompt_tokens` contain the tokens read from and written to
the cache; earlier versions left them out).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvbench.claude.files import place_of
from kvbench.claude.traces.checks import whole
from kvbench.claude.traces.problems import Problems
from kvbench.claude.usage.call import Call, seconds
from kvbench.claude.usage.documents import documents, read_rows
from kvbench.claude.usage.inputs import Inputs
from kvbench.config.errors import UserError

SOURCE = "litellm spend logs (schema: litellm 1.109.1)"
SCHEMA = "litellm's prompt_tokens contain the cached tokens (calculate_usage of 1.109.1); in early versions they do not"


def looks_so(row: object) -> bool:
    """Whether a document or a line holds rows of the table."""
    return bool(_rows(row)) and all("startTime" in found and "spend" in found for found in _rows(row)[:1])


def calls(
    files: Sequence[Path], root: Path, problems: Problems, inputs: Inputs, left: Counter[str]
) -> Iterator[Call]:
    """The billed calls of all files to models whose name contains "claude".

    Args:
        files: the logs.
        root: the folder that was given, for messages.
        problems: collects defects.
        inputs: how input tokens are read.
        left: counts what is no call to Claude that was billed, by reason.
    """
    for file in files:
        rows = _documents(file, place_of(file, root), problems)
        yield from read_rows(rows, problems, lambda row, where: _call(row, where, inputs, left))


def _documents(file: Path, place: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    """Every row with its place, from one JSON document or from lines."""
    for where, document in documents(file, place, problems):
        for number, row in enumerate(_rows(document), 1):
            yield f"{where}, row {number}" if where == place else where, row


def _rows(document: object) -> list[Any]:
    """The rows of a list, of a page of the API, or the row itself."""
    if isinstance(document, Mapping):
        page = document.get("data")
        return page if isinstance(page, list) else [document]
    return (
        document if isinstance(document, list) and all(isinstance(row, Mapping) for row in document) else []
    )


def _call(row: Mapping[str, Any], where: str, inputs: Inputs, left: Counter[str]) -> Call | None:
    model = str(row.get("model") or "")
    if "claude" not in model:
        left[f"other models ({model or 'unnamed'})"] += 1
        return None
    if str(row.get("cache_hit")).lower() == "true":
        left["answered from litellm's own cache, not billed"] += 1
        return None
    if row.get("status") == "failure":
        left["failed calls"] += 1
        return None
    if "batch" in str(row.get("call_type")):
        raise UserError(
            f"call_type={row['call_type']}: the row is a whole batch, whose calls it does not name"
        )
    metadata = _object(row.get("metadata"))
    usage = _object(metadata.get("usage_object")) or _object(metadata.get("additional_usage_values"))
    details = _object(usage.get("prompt_tokens_details"))
    read = whole(
        "cache_read_input_tokens", usage.get("cache_read_input_tokens") or details.get("cached_tokens") or 0
    )
    created = whole(
        "cache_creation_input_tokens",
        usage.get("cache_creation_input_tokens") or details.get("cache_creation_tokens") or 0,
    )
    split = _object(details.get("cache_creation_token_details"))
    hour = min(created, whole("ephemeral_1h_input_tokens", split.get("ephemeral_1h_input_tokens") or 0))
    total = whole("prompt_tokens", row.get("prompt_tokens") or 0)
    text = details.get("text_tokens")
    # text_tokens are those outside the cache: they say what prompt_tokens contain
    known = (
        {read + created + text: True, text: False}.get(total)
        if type(text) is int and read + created
        else None
    )
    output = whole("completion_tokens", row.get("completion_tokens") or 0)
    tools = _object(usage.get("server_tool_use"))
    return Call(
        id=str(row.get("request_id") or where),
        t=seconds(row["startTime"]),
        model=model,
        usage=inputs.usage(total, read, created - hour, hour, output, known=known),
        session=str(row.get("session_id") or ""),
        geo=str(usage.get("inference_geo") or ""),
        speed=str(usage.get("speed") or ""),
        batch=usage.get("service_tier") == "batch",
        server_tools={str(name): whole(str(name), count) for name, count in tools.items() if count},
        recorded_usd=float(row["spend"]),
        place=where,
    )


def _object(value: Any) -> Mapping[str, Any]:
    """A JSON object that may be stored as text; empty if it is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}
