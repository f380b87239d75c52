"""Types of the fields of a Messages API request, and what a model does not offer, with errors as the API words them.

The wording is that of pydantic, which the API's errors in public issue reports follow; it is not documented and may
change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]
Check = Callable[[Any], str]
"""The error of a value, "" for none."""

ROLES = ("user", "assistant", "system")
MESSAGE_FIELDS = ("role", "content")
GEOS = ("us", "global")
SPEEDS = ("standard", "fast")
# fields of a request, beta ones included (anthropic 2.12.0, types/beta/message_create_params.py, and older SDKs)
TOP = frozenset(
    "cache_control compaction container context_management diagnostics fallback_credit_token fallbacks inference_geo"
    " max_tokens mcp_servers messages metadata model output_config output_format billing_policy service_tier speed"
    " stop_sequences stream system temperature thinking thread tool_choice tools top_k top_p user_profile_id"
    " workspace_id".split()
)
THINKING = ("enabled", "adaptive", "disabled")
CHOICES = ("auto", "any", "tool", "none")
EFFORTS = ("low", "medium", "high", "xhigh", "max")
TIERS = ("auto", "standard_only")
LEAST_BUDGET = 1024  # of thinking
# blocks of a message, and what a tool's result may hold (anthropic 2.12.0, types/beta/beta_content_block_param.py and
# beta_tool_result_block_param.py)
BLOCKS = tuple(
    "text image document search_result thinking redacted_thinking tool_use tool_result server_tool_use"
    " web_search_tool_result web_fetch_tool_result advisor_tool_result code_execution_tool_result"
    " bash_code_execution_tool_result text_editor_code_execution_tool_result tool_search_tool_result mcp_tool_use"
    " mcp_tool_result container_upload compaction tool_addition tool_removal mcp_tool_listing fallback".split()
)
INNER_BLOCKS = ("text", "image", "search_result", "document", "tool_reference", "browser_state")


def shape_errors(body: object, *, needs_max: bool = True) -> Iterator[str]:
    """Errors of types, in the order of the request.

    Args:
        body: the request's JSON.
        needs_max: `max_tokens` is required.
    """
    if not isinstance(body, Mapping):
        yield "Input should be a valid dictionary"
        return
    yield from _field(body, "model", _text, required=True)
    yield from _field(body, "max_tokens", _tokens, required=needs_max)
    for name in body:
        if name not in TOP:
            yield f"{name}: Extra inputs are not permitted"
    for name, check in _FIELDS.items():
        yield from _field(body, name, check)
    yield from _options(body)
    system = body.get("system")
    if isinstance(system, list):
        yield from _blocks("system", system)
    elif system is not None and not isinstance(system, str):
        yield "system: Input should be a valid list"
    yield from _tools(body.get("tools"))
    messages = body.get("messages")
    if messages is None:
        yield "messages: Field required"
    elif not isinstance(messages, list):
        yield "messages: Input should be a valid list"
    elif not messages:
        yield "messages: at least one message is required"
    else:
        for number, message in enumerate(messages):
            yield from _message(f"messages.{number}", message)


def offer_errors(body: Json, *, geo: bool, fast: bool) -> Iterator[str]:
    """Errors of what the model does not offer; the wording of these is not known from any source.

    Args:
        body: a request of the right shape.
        geo: the model takes `inference_geo`.
        fast: the model has a fast mode.
    """
    wanted = body.get("inference_geo")
    if wanted is not None:
        if wanted not in GEOS:
            yield "inference_geo: Input should be 'us' or 'global'"
        elif not geo:
            yield f"inference_geo: {body['model']} does not support inference_geo"
    speed = body.get("speed")
    if speed is not None:
        if speed not in SPEEDS:
            yield "speed: Input should be 'standard' or 'fast'"
        elif speed == "fast" and not fast:
            yield f"speed: {body['model']} does not support fast mode"


def _field(body: Json, name: str, check: Check, *, required: bool = False) -> Iterator[str]:
    value = body.get(name)
    if value is None:
        if required:
            yield f"{name}: Field required"
    elif error := check(value):
        yield f"{name}: {error}"


def _options(body: Json) -> Iterator[str]:
    """Errors inside the options of a request."""
    for name, allowed in (("thinking", THINKING), ("tool_choice", CHOICES)):
        option = body.get(name)
        if not isinstance(option, Mapping):
            continue
        kind = option.get("type")
        if kind is None:
            yield f"{name}.type: Field required"
        elif kind not in allowed:
            yield f"{name}: {_unknown_tag(kind, allowed)}"
        else:
            checks = {"enabled": (("budget_tokens", _budget),), "tool": (("name", _text),)}.get(kind, ())
            for field, check in checks:
                yield from (f"{name}.{kind}.{error}" for error in _field(option, field, check, required=True))
            yield from (
                f"{name}.{kind}.{error}" for error in _field(option, "disable_parallel_tool_use", _bool)
            )
    yield from _room(body)
    for name, field, check in (("metadata", "user_id", _text), ("output_config", "effort", _one_of(EFFORTS))):
        if isinstance(option := body.get(name), Mapping):
            yield from (f"{name}.{error}" for error in _field(option, field, check))
    stops = body.get("stop_sequences")
    for number, stop in enumerate(stops if isinstance(stops, list) else ()):
        if not isinstance(stop, str):
            yield f"stop_sequences.{number}: Input should be a valid string"


def _room(body: Json) -> Iterator[str]:
    """An error where thinking leaves no room for an answer; with tools, thinking may be interleaved and go on."""
    thinking, most = body.get("thinking"), body.get("max_tokens")
    if not isinstance(thinking, Mapping) or thinking.get("type") != "enabled" or body.get("tools"):
        return
    budget = thinking.get("budget_tokens")
    # other types have errors of their own
    if isinstance(budget, int) and isinstance(most, int) and 0 < most <= budget:
        yield "`max_tokens` must be greater than `thinking.budget_tokens`"


def _tools(tools: Any) -> Iterator[str]:
    if tools is None:
        return
    if not isinstance(tools, list):
        yield "tools: Input should be a valid list"
        return
    for number, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            yield f"tools.{number}: Input should be a valid dictionary"
            continue
        # toolsets have no name
        if "name" in tool or "input_schema" in tool:
            yield from (f"tools.{number}.{error}" for error in _field(tool, "name", _text, required=True))
        yield from (f"tools.{number}.{error}" for error in _field(tool, "description", _text))
        yield from (f"tools.{number}.{error}" for error in _field(tool, "input_schema", _object))
        if tool.get("type") in (None, "custom") and "name" in tool and tool.get("input_schema") is None:
            yield f"tools.{number}.custom.input_schema: Field required"
        yield from (f"tools.{number}.{error}" for error in _field(tool, "configs", _objects))


def _message(path: str, message: Any) -> Iterator[str]:
    if not isinstance(message, Mapping):
        yield f"{path}: Input should be a valid dictionary"
        return
    for name in message:
        # a system message may change the effort from there on (beta)
        if name not in MESSAGE_FIELDS and not (name == "output_config" and message.get("role") == "system"):
            yield f"{path}.{name}: Extra inputs are not permitted"
    setting = message.get("output_config")
    if setting is not None and not isinstance(setting, Mapping):
        yield f"{path}.output_config: Input should be a valid dictionary"
    role, content = message.get("role"), message.get("content")
    if role is None:
        yield f"{path}.role: Field required"
    elif role not in ROLES:
        yield f"{path}.role: Input should be 'user' or 'assistant'"
    if content is None:
        yield f"{path}.content: Field required"
    elif isinstance(content, list):
        yield from _blocks(f"{path}.content", content)
    elif not isinstance(content, str):
        yield f"{path}.content: Input should be a valid list"


def _blocks(path: str, blocks: list[Any], *, inner: bool = False) -> Iterator[str]:
    for number, block in enumerate(blocks):
        place = f"{path}.{number}"
        if not isinstance(block, Mapping):
            yield f"{place}: Input should be a valid dictionary"
            continue
        kind = block.get("type")
        if kind is None:
            yield f"{place}.type: Field required"
        elif not isinstance(kind, str):
            yield f"{place}.type: Input should be a valid string"
        elif kind not in (allowed := INNER_BLOCKS if inner else BLOCKS):
            yield f"{place}: {_unknown_tag(kind, allowed)}"
        for name, check in _BLOCK_FIELDS.get(kind, {}).items() if isinstance(kind, str) else ():
            yield from (f"{place}.{kind}.{error}" for error in _field(block, name, check, required=True))
        if kind == "tool_result":
            content = block.get("content")
            if isinstance(content, list) and not inner:
                yield from _blocks(f"{place}.content", content, inner=True)
            elif content is not None and not isinstance(content, str):
                yield f"{place}.tool_result.content: Input should be a valid list"


def _unknown_tag(kind: object, allowed: Sequence[str]) -> str:
    expected = ", ".join(f"'{tag}'" for tag in allowed)
    return f"Input tag '{kind}' found using 'type' does not match any of the expected tags: {expected}"


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "Input should be a valid string"


def _bool(value: Any) -> str:
    return "" if isinstance(value, bool) else "Input should be a valid boolean"


def _object(value: Any) -> str:
    return "" if isinstance(value, Mapping) else "Input should be a valid dictionary"


def _objects(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "Input should be a valid dictionary"
    return (
        ""
        if all(isinstance(item, Mapping) for item in value.values())
        else "Input should be a valid dictionary"
    )


def _list(value: Any) -> str:
    return "" if isinstance(value, list) else "Input should be a valid list"


def _number(value: Any) -> str:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return "" if fine else "Input should be a valid number"


def _share(value: Any) -> str:
    if error := _number(value):
        return error
    if value < 0:
        return "Input should be greater than or equal to 0"
    return "" if value <= 1 else "Input should be less than or equal to 1"


def _integer(value: Any) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return "" if whole else "Input should be a valid integer"


def _budget(value: Any) -> str:
    if error := _integer(value):
        return error
    return "" if value >= LEAST_BUDGET else f"Input should be greater than or equal to {LEAST_BUDGET}"


def _one_of(allowed: Sequence[str]) -> Check:
    quoted = [f"'{value}'" for value in allowed]
    words = f"{', '.join(quoted[:-1])} or {quoted[-1]}"
    return lambda value: "" if value in allowed else f"Input should be {words}"


def _tokens(value: Any) -> str:
    if error := _integer(value):
        return error
    # 0 only writes the cache (R26)
    return "" if value >= 0 else "Input should be greater than or equal to 1"


_FIELDS: Mapping[str, Check] = {
    "stream": _bool,
    "temperature": _share,
    "top_p": _share,
    "top_k": _integer,
    "stop_sequences": _list,
    "metadata": _object,
    "thinking": _object,
    "output_config": _object,
    "tool_choice": _object,
    "cache_control": _object,
    "context_management": _object,
    "inference_geo": _text,
    "speed": _text,
    "service_tier": _one_of(TIERS),
}
_BLOCK_FIELDS: Mapping[str, Mapping[str, Check]] = {
    "text": {"text": _text},
    "image": {"source": _object},
    "tool_use": {"id": _text, "name": _text, "input": _object},
    "tool_result": {"tool_use_id": _text},
    "thinking": {"thinking": _text, "signature": _text},
}
