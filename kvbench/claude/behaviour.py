"""What a model does with effort, thinking and earlier thinking: defaults, and what a change of them loses.

Sources, by the letters of the table:

- E: platform.claude.com, "Effort", copy of November 2026: high by default, medium on Opus 5.5 and Haiku 5.5.
- T: platform.claude.com, "Troubleshooting thinking", table of configurations by model, 2026-08-22.
- M: the 5.5 models think when `thinking` is omitted: OpenRouter's guide to their migration, read 2026-11-30.
- K: platform.claude.com, "Thinking": on which models earlier thinking stays in the prompt, 2026-08-22.
- A: anthropics/claude-code issue 92444 (2026-09-06), usage of sessions whose effort was changed: Opus 5 writes
  everything again, Sonnet 5 the messages, Fable 5.1 nothing.
- B: anthropics/claude-code issue 61984 (2026-05-24): Opus 4.7 writes all or nearly all again, 5 of 6 changes.
- P: platform.claude.com, "Per-message effort", 2026-11-30: a system message with `output_config` keeps what stands
  before.
- W: docs.aws.amazon.com, Bedrock, "Adaptive thinking", read 2026-11-30: Mythos Preview thinks adaptively only, and
  refuses `disabled`.
- C: open-gsd/gsd-core issue 3151 (2026-08-08): Fable 5 writes everything again.

A, B and C were measured through Claude Code. The documentation says only that messages are always lost, and tools and
system on models that it does not name; it gives thinking the same effect as effort. Where nothing was measured, the
switch `params_scope` decides. No default is known to have changed while a model was offered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvbench.claude.names import parse_name
from kvbench.claude.request import digest

Params = Mapping[str, Mapping[str, str]]
Loss = Literal["nothing", "messages", "all", "unknown"]

# group of a request's parameters by what their change loses
_GROUPS: Mapping[Loss, str] = {"messages": "messages", "all": "tools", "unknown": "model"}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Facts on one model.

    Attributes:
        effort: level that an omitted `output_config.effort` means.
        thinks: an omitted `thinking` means adaptive thinking; otherwise none.
        loses: what a change of effort or thinking loses.
        keeps_thinking: thinking of earlier turns stays in the prompt after a new user turn.
        source: letters of the module's list.
    """

    effort: str = "high"
    thinks: bool = False
    loses: Loss = "unknown"
    keeps_thinking: bool = True
    source: str = ""


_OLD = Behaviour(keeps_thinking=False, source="T K")
_MODELS: Mapping[str, Behaviour] = {
    "claude-fable-5-2": Behaviour(thinks=True, source="E"),
    "claude-mythos-5-2": Behaviour(thinks=True, source="E"),
    "claude-fable-5-1": Behaviour(thinks=True, loses="nothing", source="E A"),
    "claude-mythos-5-1": Behaviour(thinks=True, source="E"),
    "claude-fable-5": Behaviour(thinks=True, loses="all", source="E T K C"),
    "claude-mythos-5": Behaviour(thinks=True, source="E T K"),
    "claude-mythos-preview": Behaviour(thinks=True, source="W"),
    "claude-opus-5-5": Behaviour(effort="medium", thinks=True, source="E M"),
    "claude-sonnet-5-5": Behaviour(thinks=True, source="E M"),
    "claude-haiku-5-5": Behaviour(effort="medium", thinks=True, source="E M"),
    "claude-opus-5": Behaviour(thinks=True, loses="all", source="E T K A"),
    "claude-sonnet-5": Behaviour(thinks=True, loses="messages", source="E T K A"),
    "claude-opus-4-8": Behaviour(source="E T K"),
    "claude-opus-4-7": Behaviour(loses="all", source="E T K B"),
    "claude-opus-4-6": Behaviour(source="E T K"),
    "claude-sonnet-4-6": Behaviour(source="E T K"),
    "claude-opus-4-5": Behaviour(source="E T K"),
    "claude-opus-4-1": _OLD,
    "claude-opus-4": _OLD,
    "claude-sonnet-4-5": _OLD,
    "claude-sonnet-4": _OLD,
    "claude-sonnet-3-7": _OLD,
    "claude-sonnet-3-5": _OLD,
    "claude-haiku-4-5": _OLD,
    "claude-haiku-3-5": _OLD,
    "claude-haiku-3": _OLD,
    "claude-opus-3": _OLD,
    "claude-sonnet-3": _OLD,
}


def behaviour(model: str) -> Behaviour:
    """The facts on a model, by any form of its id; the commonest ones if it is not known."""
    name = parse_name(model).model
    head, _, last = name.rpartition("-")
    return _MODELS.get(head if len(last) == 8 and last.isdigit() else name, Behaviour())


def strips_thinking(model: str) -> bool:
    """Whether a new user turn drops the thinking of earlier turns from the prompt."""
    return not behaviour(model).keeps_thinking


def resolved(params: Params, model: str, speed: str = "") -> dict[str, dict[str, str]]:
    """The parameters of a request that change its prefix on this model, by the tier that they change.

    What a model's default is, is dropped, and so is a speed that the API did not serve.

    Args:
        params: hashes of the parameters as sent, as in `ParsedRequest`.
        model: the model's id.
        speed: as served, "" if not known.
    """
    facts = behaviour(model)
    groups = {name: dict(group) for name, group in params.items()}
    if speed == "standard":
        groups.get("system", {}).pop("speed", None)
    specific = groups.get("model", {})
    defaults = {
        "effort": facts.effort,
        "thinking": {"type": "adaptive" if facts.thinks else "disabled"},
    }
    for name, default in defaults.items():
        sent = specific.pop(name, None)
        if sent is not None and sent != f"{salt(default):016x}" and facts.loses != "nothing":
            groups.setdefault(_GROUPS[facts.loses], {})[name] = sent
    return {name: group for name, group in groups.items() if group}


def salt(value: Any) -> int:
    """Hash of a JSON value, 0 for nothing."""
    return digest(json.dumps(value, sort_keys=True)) if value else 0
