"""OpenTelemetry spans of GenAI calls, as the OTLP file exporter writes them: JSON lines of `resourceSpans`.

Schema: the OTLP/JSON encoding (open-telemetry/opentelemetry-proto 1.x), and the GenAI semantic conventions
(open-telemetry/semantic-conventions, docs/gen-ai/anthropic.md, commit 1c01bce2; the cache attributes came with pull
request 1959): `gen_ai.usage.input_tokens` contain the cached tokens, which Anthropic itself reports apart. There is no
5m/1h split in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvbench.claude.files import place_of
from kvbench.claude.traces.checks import MALFORMED, whole
from kvbench.claude.traces.problems import Problems
from kvbench.claude.usage.call import Call
from kvbench.claude.usage.documents import documents, read_rows
from kvbench.claude.usage.inputs import Inputs

SOURCE = "OpenTelemetry GenAI spans (schema: semantic-conventions 1c01bce2, OTLP/JSON)"
SCHEMA = (
    "By the conventions, gen_ai.usage.input_tokens contain the cached tokens; spans of libraries that copy Anthropic's "
    "own figure do not"
)
NO_SPLIT = "The conventions have no 5m/1h split: all writes are priced as 5m."
OPERATIONS = ("chat", "text_completion", "generate_content")  # an agent's span repeats the usage of its calls


def looks_so(row: object) -> bool:
    """Whether a document or a line holds spans."""
    return isinstance(row, Mapping) and isinstance(row.get("resourceSpans"), list)


def calls(
    files: Sequence[Path], root: Path, problems: Problems, inputs: Inputs, left: Counter[str]
) -> Iterator[Call]:
    """The calls of all files to models whose name contains "claude"; see `litellm.calls` for the arguments."""
    seen: set[str] = set()
    for file in files:
        spans = _spans(file, place_of(file, root), problems)
        for call in read_rows(spans, problems, lambda span, where: _call(span, where, inputs, left)):
            if call.id in seen:
                left["spans of a call that another span has"] += 1
                continue
            seen.add(call.id)
            yield call


def _spans(file: Path, place: str, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for where, document in documents(file, place, problems):
        try:
            spans = [
                span
                for resource in document["resourceSpans"]
                for scope in resource["scopeSpans"]
                for span in scope["spans"]
            ]
        except MALFORMED as error:
            problems.skip(where, f"no resourceSpans ({type(error).__name__}: {error})")
            continue
        for span in spans:
            yield f"{where}, span {span.get('spanId', '?') if isinstance(span, Mapping) else '?'}", span


def _call(span: Mapping[str, Any], where: str, inputs: Inputs, left: Counter[str]) -> Call | None:
    values = {item["key"]: _value(item["value"]) for item in span.get("attributes") or ()}
    if "gen_ai.usage.input_tokens" not in values:
        left["spans without usage"] += 1
        return None
    operation = values.get("gen_ai.operation.name", "chat")
    if operation not in OPERATIONS:
        left[f"spans of {operation}"] += 1
        return None
    model = str(values.get("gen_ai.response.model") or values.get("gen_ai.request.model") or "")
    if "claude" not in model:
        left[f"other models ({model or 'unnamed'})"] += 1
        return None
    return Call(
        id=str(values.get("gen_ai.response.id") or span.get("spanId") or where),
        t=int(span["startTimeUnixNano"]) / 1e9,
        model=model,
        usage=inputs.usage(
            _count(values, "input_tokens"),
            _count(values, "cache_read.input_tokens"),
            _count(values, "cache_creation.input_tokens"),
            0,
            _count(values, "output_tokens"),
        ),
        session=str(values.get("gen_ai.conversation.id") or ""),
        place=where,
    )


def _count(values: Mapping[str, Any], name: str) -> int:
    return whole(name, values.get(f"gen_ai.usage.{name}", 0))


def _value(value: Mapping[str, Any]) -> Any:
    """The value of an attribute; OTLP/JSON writes 64-bit integers as text."""
    ((kind, found),) = value.items()
    return int(found) if kind == "intValue" else found
