"""Parses the JSON of a Messages API request into blocks, markers and the parameters that affect the prefix."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from kvbench.claude.attachments import attached_tokens, own_tool_tokens
from kvbench.claude.behaviour import resolved, salt, strips_thinking
from kvbench.claude.masks import masked
from kvbench.claude.request import (
    MESSAGES,
    SERVER_RESULT,
    SYSTEM,
    TEXT,
    THINKING,
    TOOL,
    TOOL_RESULT,
    TOOL_USE,
    TOOLS,
    TTL_SECONDS,
    ContentBlock,
    Hashing,
    Node,
    Request,
    chain,
    digest,
    last_markable,
    tier_ends,
)
from kvbench.claude.tokens import Counter, weakest

Json = Mapping[str, Any]

# tool definitions whose presence is documented to affect system and messages, not the tools tier
TOGGLES = ("web_search", "web_fetch")

# per-message effort: a system message without content, and a beta that is documented to keep the cached prefix
# (platform.claude.com, "Per-message effort", read 2026-11-30)
SETTING = "output_config"
KEEPS_PREFIX = "mid-conversation-output-config-"

_KINDS = {
    "tool_use": TOOL_USE,
    "tool_result": TOOL_RESULT,
    "thinking": THINKING,
    "redacted_thinking": THINKING,
}


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request as a trace records it.

    Attributes:
        blocks: all blocks in tools, system, messages order.
        markers: (index into blocks, ttl in seconds) of explicit markers, in order.
        automatic: ttl in seconds of a top-level cache_control, None if there is none.
        params: hashes of the parameters that affect the prefix, by name within the affected tier: "system",
            "messages", "model" (the tier, and the default, depend on the model: `behaviour.resolved`).
        tool_prompt: the tool-use prompt that the API adds (R21): "auto", "any", "" without tools.
    """

    blocks: tuple[ContentBlock, ...]
    markers: tuple[tuple[int, int], ...]
    automatic: int | None
    params: Mapping[str, Mapping[str, str]]
    tool_prompt: str = ""


def parse(
    body: Json,
    counter: Counter,
    betas: Sequence[str] = (),
    *,
    known: Sequence[ContentBlock] = (),
    masks: bool = True,
) -> ParsedRequest:
    """Parses a request body.

    Args:
        body: the request's JSON, valid.
        counter: counts each block's tokens.
        betas: values of the anthropic-beta header.
        known: blocks of an earlier request, whose masked hashes are taken where the blocks are the same.
        masks: also hash each block without dates and numbers, which names what changed in it.
    """
    model = str(body.get("model", ""))
    blocks: list[ContentBlock] = []
    markers: list[tuple[int, int]] = []
    for tier, message, role, first, item, string in _items(body, model):
        control = _control(item)
        if control is not None:
            markers.append((len(blocks), ttl_of(control)))
        block = _block(tier, message, role if first else role + "+", item, string, counter, model)
        if masks:
            before = known[len(blocks)] if len(blocks) < len(known) else None
            if before is not None and (before.hash, before.string) == (block.hash, string):
                found = before.undated, before.unnumbered
            else:
                found = masked(_canonical(_bare(item)))
            block = replace(block, undated=found[0], unnumbered=found[1])
        blocks.append(block)
    top = body.get("cache_control")
    automatic = None if top is None else ttl_of(top)
    return ParsedRequest(tuple(blocks), tuple(markers), automatic, _params(body, betas), _tool_prompt(body))


def build_request(
    parsed: ParsedRequest,
    *,
    id: str,
    t: float,
    model: str,
    hashing: Hashing,
    output: int = 0,
    ttft: float = 0.0,
    session: str = "",
    workspace: str = "default",
    batch: bool = False,
    geo: str = "",
    speed: str = "",
    hidden: int = 0,
) -> Request:
    """Builds the prefix chain of a parsed request and places its markers, including the automatic one (R4).

    Args:
        parsed: the parsed request.
        hashing: differences that change the prefix.
        hidden: tokens of the API's own tool-use prompt (R21).
        id, t, model, output, ttft, session, workspace, batch, geo, speed: see `Request`.
    """
    before, tail = split_hidden(hidden, hashing)
    params = resolved(parsed.params, model, speed)
    nodes = chain(parsed.blocks, hashing, salts(params, hashing), before)
    head = nodes[-1]
    tools_end, system_end = tier_ends(nodes)
    return Request(
        id=id,
        t=t,
        model=model,
        head=head,
        tools_end=tools_end,
        system_end=system_end,
        markers=placed_markers(nodes, parsed),
        session=session,
        workspace=workspace,
        ttft=ttft,
        output=output,
        source=weakest({block.source for block in parsed.blocks}),
        batch=batch,
        geo=geo,
        speed=speed,
        tail=tail,
        blocks=parsed.blocks,
        params=params,
    )


def split_hidden(hidden: int, hashing: Hashing) -> tuple[int, int]:
    """The API's own tool-use prompt as (tokens before the first block, uncacheable tokens)."""
    return (hidden, 0) if hashing.tool_prompt == "prefix" else (0, hidden)


def placed_markers(nodes: Sequence[Node], parsed: ParsedRequest) -> tuple[tuple[Node, int], ...]:
    """Markers of a request on its nodes, in prompt order."""
    placed = [(nodes[index], ttl) for index, ttl in parsed.markers]
    if parsed.automatic is not None:
        node = last_markable(nodes[-1])
        if node is not None and all(marked is not node for marked, _ in placed):
            placed.append((node, parsed.automatic))
    return tuple(sorted(placed, key=lambda marker: marker[0].index))


def with_markers(body: Json, ttls: Mapping[int, str]) -> dict[str, Any]:
    """A copy of a request with its markers replaced.

    Args:
        body: the request's JSON.
        ttls: ttl by block index, in the order of `parse`. All strings become text blocks, so that marked and
            unmarked messages have the same form.
    """
    copy = {key: deepcopy(value) for key, value in body.items() if key != "cache_control"}
    if isinstance(copy.get("system"), str) and copy["system"]:
        copy["system"] = [{"type": "text", "text": copy["system"]}]
    for message in copy.get("messages") or ():
        if isinstance(message.get("content"), str):
            message["content"] = [{"type": "text", "text": message["content"]}]
    for index, (_, _, _, _, item, _) in enumerate(_items(copy, str(copy.get("model", "")))):
        for part in (item, *(item["content"] if isinstance(item.get("content"), list) else ())):
            part.pop("cache_control", None)
        if index in ttls:
            item["cache_control"] = {"type": "ephemeral", "ttl": ttls[index]}
    return copy


def salts(params: Mapping[str, Mapping[str, str]], hashing: Hashing) -> tuple[int, int, int]:
    """Hash of the parameters that affect each tier, [3]; 0 if all have their defaults.

    Args:
        params: as `behaviour.resolved` gives them.
        hashing: says which tier the parameters of the group "model" affect.
    """
    model_specific = params.get("model")
    tools: Any = params.get("tools")
    messages: Any = params.get("messages")
    if model_specific and hashing.params_scope == "tools":
        tools = [tools, model_specific]
    elif model_specific:
        messages = [messages, model_specific]
    return salt(tools), salt(params.get("system")), salt(messages)


def ttl_of(control: Json) -> int:
    """TTL of a cache_control in seconds; 5 minutes by default (R12)."""
    return TTL_SECONDS[control.get("ttl") or "5m"]


def text_of(item: Json) -> str:
    """The text of a block that is tokenised: its text, or its JSON without markers.

    A `tool_reference` (in a tool result) counts as its JSON, like every block without text, and not as the tool
    definition that it refers to: its billing is not documented.
    """
    if item.get("type") == "text" and set(item) <= {"type", "text", "cache_control"}:
        return str(item["text"])
    if item.get("type") == "tool_result" and isinstance(item.get("content"), str):
        return item["content"]
    # sorted, so that the order of the keys does not move the count of a tokenizer
    return json.dumps(_without_data(_bare(item)), ensure_ascii=False, sort_keys=True)


def _without_data(value: Any) -> Any:
    """A copy without base64 data, which is not tokenised as text."""
    if isinstance(value, Mapping):
        data = value.get("type") == "base64"
        return {key: "" if data and key == "data" else _without_data(item) for key, item in value.items()}
    return [_without_data(item) for item in value] if isinstance(value, list) else value


def _items(body: Json, model: str) -> Iterator[tuple[int, int, str, bool, dict[str, Any], bool]]:
    """Every block: (tier, message, role, is first in its message, content, was a bare string)."""
    tools = [tool for tool in body.get("tools") or () if not deferred(tool)]
    toggles = [tool for tool in tools if str(tool.get("type", "")).startswith(TOGGLES)]
    for tool in tools:
        if tool not in toggles:
            yield TOOLS, -1, "", True, tool, False
    for tool in toggles:
        yield SYSTEM, -1, "tool", True, tool, False
    for item, string in _content(body.get("system") or ()):
        yield SYSTEM, -1, "", True, item, string
    messages = body.get("messages") or ()
    strip_before = _last_new_turn(messages) if strips_thinking(model) else -1
    for number, message in enumerate(messages):
        first = True
        for item, string in _content(message.get("content") or ()):
            if number < strip_before and _KINDS.get(item.get("type", "")) == THINKING:
                continue
            yield MESSAGES, number, str(message.get("role")), first, item, string
            first = False
        if message.get("role") == "system" and message.get(SETTING):
            yield MESSAGES, number, "system", first, {"type": SETTING, SETTING: message[SETTING]}, False


def deferred(tool: Json) -> bool:
    """Whether a tool, or every tool of a toolset, is left out of the prefix until a search finds it (R6)."""
    if tool.get("defer_loading"):
        return True
    overrides = [config.get("defer_loading") for config in (tool.get("configs") or {}).values()]
    return bool((tool.get("default_config") or {}).get("defer_loading")) and False not in overrides


def _content(content: str | Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bool]]:
    if isinstance(content, str):
        yield {"type": "text", "text": content}, True
    else:
        for item in content:
            yield item, False


def _tool_prompt(body: Json) -> str:
    if not body.get("tools"):
        return ""
    return "any" if (body.get("tool_choice") or {}).get("type") in ("any", "tool") else "auto"


def _last_new_turn(messages: Sequence[Json]) -> int:
    """Index of the last user message that is more than tool results, -1 if there is none."""
    for number in range(len(messages) - 1, -1, -1):
        if messages[number].get("role") != "user":
            continue
        if any(
            item.get("type") != "tool_result" for item, _ in _content(messages[number].get("content") or ())
        ):
            return number
    return -1


def _block(
    tier: int, message: int, place: str, item: Json, string: bool, counter: Counter, model: str
) -> ContentBlock:
    type_ = "tool" if tier == TOOLS else str(item.get("type", "text"))
    bare = _bare(item)
    canonical = _canonical(bare)
    as_sent = json.dumps(bare, separators=(",", ":"), ensure_ascii=False)
    usual = as_sent == json.dumps(_type_first(bare), separators=(",", ":"), ensure_ascii=False)
    tokens, source = counter.count(text_of(item), model)
    own = own_tool_tokens(item, model) if tier == TOOLS else None
    if own is not None:
        tokens, source = own, "estimate"
    elif tier == TOOLS and str(item.get("type", "")).endswith("_toolset"):
        # one entry stands for several tools whose definitions the API adds
        source = "estimate"
    if item.get("type") == SETTING:
        tokens = 0
    if attached := attached_tokens(item, model):
        tokens, source = tokens + attached, "estimate"
    return ContentBlock(
        tier=tier,
        kind=_kind(tier, type_),
        hash=digest(place + canonical),
        tokens=tokens,
        source=source,
        order=0 if usual else digest(as_sent),
        string=string,
        message=message,
        type=type_,
        markable=markable(item),
        content=digest(canonical) if place else 0,
    )


def _canonical(value: Json) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def markable(item: Json) -> bool:
    """Whether a block may carry cache_control (R5)."""
    if _KINDS.get(str(item.get("type", ""))) == THINKING:
        return False
    return item.get("type") != SETTING and not (item.get("type") == "text" and not item.get("text"))


def _kind(tier: int, type_: str) -> int:
    if tier == TOOLS:
        return TOOL
    if type_ in _KINDS:
        return _KINDS[type_]
    return SERVER_RESULT if type_.endswith("_tool_result") and type_ != "mcp_tool_result" else TEXT


def _control(item: Json) -> Json | None:
    """The marker of a block; a marker on the last part of a tool result counts for the result."""
    control = item.get("cache_control")
    content = item.get("content")
    if control is None and item.get("type") == "tool_result" and isinstance(content, list) and content:
        control = content[-1].get("cache_control")
    return control


def _bare(item: Json) -> dict[str, Any]:
    """A block without markers, which are not hashed; schemas and inputs are unchanged."""
    bare = {key: value for key, value in item.items() if key != "cache_control"}
    if isinstance(bare.get("content"), list):
        bare["content"] = [_bare(part) if isinstance(part, Mapping) else part for part in bare["content"]]
    return bare


def _type_first(value: Any) -> Any:
    """A copy with sorted keys, `type` first: the order in which client libraries write text blocks."""
    if isinstance(value, Mapping):
        return {key: _type_first(value[key]) for key in sorted(value, key=lambda key: (key != "type", key))}
    return [_type_first(item) for item in value] if isinstance(value, list) else value


def _params(body: Json, betas: Sequence[str]) -> dict[str, dict[str, str]]:
    """Hashes of the parameters that affect the prefix; effort and thinking as sent, the others unless the default."""
    choice = dict(body.get("tool_choice") or {})
    if choice.get("disable_parallel_tool_use") is False:
        del choice["disable_parallel_tool_use"]
    config = dict(body.get("output_config") or {})
    # how thinking is shown does not change the prompt
    thinking = {key: value for key, value in (body.get("thinking") or {}).items() if key != "display"}
    system = {
        "speed": body.get("speed") if body.get("speed") not in (None, "standard") else None,
        "citations": _any(body, lambda item: bool((item.get("citations") or {}).get("enabled"))),
    }
    messages = {
        "tool_choice": None if choice in ({}, {"type": "auto"}) else choice,
        "images": _any(body, lambda item: item.get("type") == "image"),
    }
    model = {
        "thinking": thinking,
        "effort": config.get("effort"),
        "format": config.get("format") or body.get("output_format"),
        "context_management": body.get("context_management"),
        "betas": sorted(beta for beta in betas if not beta.startswith(KEEPS_PREFIX)) or None,
    }
    groups = {"system": system, "messages": messages, "model": model}
    kept = {
        name: {key: f"{salt(value):016x}" for key, value in group.items() if value}
        for name, group in groups.items()
    }
    return {name: group for name, group in kept.items() if group}


def _any(body: Json, test: Any) -> bool:
    found = False
    for message in body.get("messages") or ():
        for item, _ in _content(message.get("content") or ()):
            inner = item.get("content") if isinstance(item.get("content"), list) else ()
            found = (
                found or test(item) or any(isinstance(part, Mapping) and test(part) for part in inner or ())
            )
    return found
