"""The first thing in which a request differs from an earlier one, and what changed in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kvbench.claude.behaviour import strips_thinking
from kvbench.claude.request import (
    KINDS,
    MESSAGES,
    SYSTEM,
    THINKING,
    TIERS,
    TOOLS,
    ContentBlock,
    Node,
    Request,
)
from kvbench.claude.request_json import TOGGLES

# parameter -> reason; the order is that in which a request states them
PARAMETERS = {
    "speed": "speed changed",
    "citations": "citations turned on or off",
    "tool_choice": "tool_choice changed",
    "images": "images added or removed",
    "thinking": "thinking changed",
    "effort": "effort changed",
    "format": "output format changed",
    "context_management": "context_management changed",
    "betas": "beta headers changed",
}
MASKED = ("date or time changed", "number or random id changed")
TOGGLED = "server tool added or removed"
# the API's `diagnostics.cache_miss_reason` by tier of the first changed block
API_REASONS = ("tools_changed", "system_changed", "messages_changed")


@dataclass(frozen=True)
class Change:
    """The first difference between two requests.

    Attributes:
        reason: a key of `misses.CAUSES`.
        place: the block, the parameter or "model".
        detail: what changed in it.
        index: blocks that both requests have before it.
        api: the type of reason that the API would give.
        edited: the block is another one in both requests, not added, removed or moved.
    """

    reason: str
    place: str
    detail: str
    index: int
    api: str
    edited: bool = False


def path(head: Node) -> list[Node]:
    """The blocks of a prompt in order."""
    nodes = []
    node: Node | None = head
    while node is not None and node.index:
        nodes.append(node)
        node = node.parent
    return nodes[::-1]


def common_blocks(before: Request, now: Request) -> int:
    """Blocks at the start of both prompts that share a cache entry's hash; 0 for different models."""
    if before.model != now.model:
        return 0
    first: Node | None = before.head
    second: Node | None = now.head
    while first is not None and second is not None:
        if first.index > second.index:
            first = first.parent
        elif second.index > first.index:
            second = second.parent
        elif first is second or first.cum == second.cum:
            return first.index
        else:
            first, second = first.parent, second.parent
    return 0


def first_change(before: Request, now: Request) -> Change | None:
    """What keeps a request from reading what an earlier one wrote; None if one prompt begins the other.

    The order is that of the prefix: model, then per tier its parameters and its blocks.
    """
    if before.model != now.model:
        return Change("model changed", "model", f"{before.model} became {now.model}", 0, "model_changed")
    index = common_blocks(before, now)
    # blocks of a trace without contents are cut differently in each prompt, so only ends of prompts are sure
    if index in (before.head.index, now.head.index):
        return None
    old, new = path(before.head)[index:], path(now.head)[index:]
    where = _where(new[0], now)
    found = _parameter(before, now, old[0], new[0])
    if found is not None:
        return found
    api = API_REASONS[new[0].tier]
    if not before.blocks or not now.blocks:
        if new[0].block_hash and old[0].block_hash == new[0].block_hash:
            tier = TIERS[new[0].tier]
            return Change(
                "parameter changed", f"a parameter of {tier}", f"{where} is the same", index, "unavailable"
            )
        return Change("prefix changed", where, _sizes(before, now, new[0]), index, api, edited=True)
    reason, detail, edited = _block(before, now, index)
    if reason == TOGGLED:
        # its definition is in `tools`, though it changes the system tier
        api = API_REASONS[TOOLS]
    return Change(reason, where, detail, index, api, edited)


def _sizes(before: Request, now: Request, first: Node) -> str:
    """What is known of a change in a trace without contents."""
    shared = first.parent.tokens if first.parent is not None and first.parent.index else 0
    # the cuts of both prompts differ, their hash ids can be compared one by one
    old, new = (
        [content for node in path(request.head)[first.index - 1 :] for content in node.contents]
        for request in (before, now)
    )
    same = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), 0)
    shared += same * (first.tokens - shared) // max(1, len(first.contents))
    return (
        f"{shared} tokens are the same; the prompt went from {before.head.tokens} to {now.head.tokens} tokens"
    )


def _where(node: Node, request: Request) -> str:
    kind = request.blocks[node.index - 1].type if request.blocks else KINDS[node.kind]
    return f"block {node.index} ({TIERS[node.tier]}, {kind})"


def _parameter(before: Request, now: Request, old: Node, new: Node) -> Change | None:
    """The changed parameter whose tier begins between the shared blocks and the first different one."""
    first, last = new.parent, min(old.tier, new.tier)
    shared = first.tier if first is not None and first.index else -1
    # parameters whose tier depends on the model go with the tools if those were hashed differently
    begins = {
        "tools": TOOLS,
        "system": SYSTEM,
        "messages": MESSAGES,
        "model": TOOLS if _root(old) != _root(new) else MESSAGES,
    }
    names = list(PARAMETERS)
    changed: list[tuple[int, int, str]] = []
    for group, tier in begins.items():
        mine, theirs = now.params.get(group, {}), before.params.get(group, {})
        for name in {*mine, *theirs}:
            if shared < tier <= last and mine.get(name) != theirs.get(name):
                changed.append((tier, names.index(name) if name in names else len(names), name))
    if not changed:
        return None
    place = min(changed)[2]
    state = "changed"
    for request, words in ((before, "was not set before"), (now, "is not set any more")):
        if not any(place in group for group in request.params.values()):
            state = words
    others = [name for _, _, name in sorted(changed)[1:]]
    detail = f"{place} {state}" + (f"; {', '.join(others)} too" if others else "")
    reason = PARAMETERS.get(place, "parameter changed")
    api = "model_changed" if place == "speed" else "unavailable"
    return Change(reason, place, detail, new.index - 1, api)


def _root(node: Node) -> int:
    """Hash of a prompt before its first block, which holds what the tools tier depends on."""
    while node.parent is not None:
        node = node.parent
    return node.cum


def _block(before: Request, now: Request, index: int) -> tuple[str, str, bool]:
    """Reason and detail of a block that differs, and whether it was edited in its place."""
    old, new = before.blocks[index:], now.blocks[index:]
    a, b = old[0], new[0]
    if _content(a) == _content(b) and a.tier == b.tier:
        if a.order != b.order:
            return "JSON keys reordered", "the content is the same, the keys stand in another order", True
        if a.string != b.string:
            return "string form changed", "a string became a list of blocks, or the reverse", True
        return "message boundaries changed", "the content is the same, its message is another one", True
    if toggled := [block.type for block in (a, b) if block.tier == SYSTEM and block.type.startswith(TOGGLES)]:
        return TOGGLED, f"{toggled[0]} is in one request only, or another one", True
    if TOOLS in (a.tier, b.tier):
        return _tools(before, now, a, b)
    removed, inserted = _position(old, b), _position(new, a)
    gone = old[: removed or 0]
    if removed and all(block.kind == THINKING for block in gone):
        if strips_thinking(now.model):
            return (
                "earlier thinking dropped",
                f"{len(gone)} thinking blocks are no longer in the prompt",
                False,
            )
        return "blocks removed", f"{len(gone)} thinking blocks are no longer in the prompt", False
    if removed and inserted:
        return "blocks reordered", "the same blocks stand in another order", False
    if a.undated and a.undated == b.undated:
        return "date or time changed", "only a date or a time in it changed", True
    if a.unnumbered and a.unnumbered == b.unnumbered:
        return "number or random id changed", "only a number or a random id in it changed", True
    if inserted:
        return "blocks inserted", f"{inserted} new before what stood there", False
    if removed:
        return "blocks removed", f"{removed} that stood there are gone", False
    tier = TIERS[b.tier]
    reason = "system prompt changed" if b.tier == SYSTEM else "message changed"
    if a.tier != b.tier:
        return reason, f"{tier} begins where {TIERS[a.tier]} went on", False
    return reason, f"{a.tokens} tokens became {b.tokens}", True


def _tools(before: Request, now: Request, a: ContentBlock, b: ContentBlock) -> tuple[str, str, bool]:
    old = Counter(_content(block) for block in before.blocks if block.tier == TOOLS)
    new = Counter(_content(block) for block in now.blocks if block.tier == TOOLS)
    if old == new:
        return "tools reordered", "the same definitions stand in another order", False
    added, gone = (new - old).total(), (old - new).total()
    if added and gone and a.tier == b.tier == TOOLS:
        if a.undated and a.undated == b.undated:
            return "date or time changed", "only a date or a time in a definition changed", True
        if a.unnumbered and a.unnumbered == b.unnumbered:
            return "number or random id changed", "only a number or a random id in a definition changed", True
        if added == gone:
            return "tool definition changed", f"{a.tokens} tokens became {b.tokens}", True
    return "tools added or removed", f"{added} added, {gone} removed", False


def _position(blocks: Sequence[ContentBlock], wanted: ContentBlock) -> int | None:
    """Position of the first block with the content of another one, None if there is none."""
    for number, block in enumerate(blocks):
        if _content(block) == _content(wanted) and block.tier == wanted.tier:
            return number
    return None


def _content(block: ContentBlock) -> int:
    return block.content or block.hash
