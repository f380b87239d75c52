"""A request as the cache sees it: a chain of content blocks, each with a cumulative hash.

Every block of a prompt is a `Node` that points to the previous block, so requests with a common prefix share its nodes
and a request that extends another one only adds nodes for the extension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TOOLS, SYSTEM, MESSAGES = 0, 1, 2
TIERS = ("tools", "system", "messages")

# kinds that the rules distinguish; all other content is TEXT
TEXT, TOOL, TOOL_USE, TOOL_RESULT, THINKING, SERVER_RESULT = range(6)
KINDS = ("text", "tool", "tool_use", "tool_result", "thinking", "server_tool_result")

TTL_SECONDS = {"5m": 300, "1h": 3600}
TTL_NAMES = {300: "5m", 3600: "1h"}

# a polynomial hash modulo a Mersenne prime: independent of how a prefix is cut into blocks
_PRIME = (1 << 127) - 1
_FACTOR = 0x5DEECE66D1234567F9E3779B97F4A7C1 % _PRIME


def digest(text: str) -> int:
    """64-bit content hash of a text (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def mix(cumulative: int, values: Sequence[int]) -> int:
    """Cumulative prefix hash after appending values in order."""
    for value in values:
        cumulative = (cumulative * _FACTOR + value + 1) % _PRIME
    return cumulative


@dataclass(frozen=True, slots=True)
class ContentBlock:
    """One content block of a request, without its content.

    Attributes:
        tier: TOOLS, SYSTEM or MESSAGES.
        kind: one of the kinds above.
        hash: hash of the content, with sorted JSON keys and bare strings as text blocks.
        tokens: tokens of this block alone.
        source: source of the token count: usage, scaled, fixture, reconstructed, estimate.
        order: hash of the JSON as sent, 0 if its keys are in the usual order (assumption U6).
        string: the content was a bare string (assumption U4).
        message: index of the block's message, -1 outside messages.
        type: the block's type name, for reports.
        markable: the block may carry cache_control (R5).
        content: hash of the content regardless of its place in a message, 0 if not recorded.
        undated: hash of the content with dates and times masked, 0 if it has none.
        unnumbered: hash of the content with dates, times, numbers and random ids masked, 0 if it has none.
    """

    tier: int
    kind: int
    hash: int
    tokens: int
    source: str = "estimate"
    order: int = 0
    string: bool = False
    message: int = -1
    type: str = "text"
    markable: bool = True
    content: int = 0
    undated: int = 0
    unnumbered: int = 0


class Node:
    """A block in a prefix chain."""

    __slots__ = (
        "__weakref__",
        "block_hash",
        "contents",
        "cum",
        "index",
        "kind",
        "markable",
        "message",
        "parent",
        "server",
        "tier",
        "tokens",
    )

    def __init__(
        self,
        parent: Node | None,
        cum: int,
        tokens: int,
        tier: int,
        kind: int,
        message: int = -1,
        block_hash: int = 0,
        markable: bool = True,
        contents: Sequence[int] = (),
    ) -> None:
        """Appends a block to a chain.

        Args:
            parent: the previous block, None for the root.
            cum: hash of everything up to and including this block.
            tokens: tokens of everything up to and including this block.
            tier: TOOLS, SYSTEM or MESSAGES.
            kind: kind of the block.
            message: index of its message.
            block_hash: hash of the block alone.
            markable: the block may carry cache_control.
            contents: hashes of what it holds regardless of its place, of equal size: its content, or its hash ids.
        """
        self.parent = parent
        self.cum = cum
        self.tokens = tokens
        self.tier = tier
        self.kind = kind
        self.message = message
        self.block_hash = block_hash
        self.markable = markable
        self.contents = contents
        self.index = 0 if parent is None else parent.index + 1
        # nearest server-tool result at or before this block, where the API sets a breakpoint (R7)
        self.server = self if kind == SERVER_RESULT else None if parent is None else parent.server


Marker = tuple[Node, int]
"""A breakpoint: its block and its TTL in seconds (300 or 3600)."""


@dataclass(frozen=True, slots=True)
class Hashing:
    """Differences between two requests that change the prefix: the assumptions that apply before the lookup.

    Attributes:
        string_form: U4, "equal" or "distinct".
        key_order: U6, "significant" or "ignored".
        params_scope: first tier that a change of thinking, effort, betas invalidates: "messages" or "tools".
        tool_prompt: the API's own tool-use prompt (R21) is cached with the prefix ("prefix") or "uncached".
    """

    string_form: str = "equal"
    key_order: str = "significant"
    params_scope: str = "messages"
    tool_prompt: str = "prefix"

    def value(self, block: ContentBlock) -> int:
        """The block's contribution to the cumulative hash."""
        value = block.hash
        if block.order and self.key_order == "significant":
            value ^= block.order
        if block.string and self.string_form == "distinct":
            value ^= 0x5F5F
        return value


def root(salt: int = 0, tokens: int = 0) -> Node:
    """The root before the first block; requests with different salts share nothing.

    Args:
        salt: hash of the parameters that the tools tier depends on.
        tokens: tokens that the API itself adds there (R21), cached with the first block.
    """
    return Node(None, mix(1, (salt,)), tokens, TOOLS, TEXT)


def append(parent: Node, block: ContentBlock, hashing: Hashing, salts: Sequence[int]) -> Node:
    """Appends a block and mixes in the salt of each tier that it opens.

    Args:
        parent: last block so far, or the root.
        block: the block to append; its tier must not be before the parent's.
        hashing: differences that change the prefix.
        salts: hash of the parameters that affect each tier, [3].
    """
    cum = parent.cum
    for tier in range(parent.tier + 1, block.tier + 1):
        cum = mix(cum, (salts[tier],))
    value = hashing.value(block)
    tokens = parent.tokens + block.tokens
    return Node(
        parent,
        mix(cum, (value,)),
        tokens,
        block.tier,
        block.kind,
        block.message,
        value,
        block.markable,
        (block.content or block.hash,),
    )


@dataclass(slots=True)
class Usage:
    """Input tokens of one request by billing class: `read + write_5m + write_1h + uncached = total`."""

    read: int = 0
    write_5m: int = 0
    write_1h: int = 0
    uncached: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        """All input tokens."""
        return self.read + self.write_5m + self.write_1h + self.uncached


@dataclass(slots=True)
class Request:
    """One request of a trace.

    Attributes:
        id: unique within the trace.
        t: start, seconds since the Unix epoch.
        model: model id as sent.
        head: last block of the prompt.
        tools_end: last block of the tools tier, None without tools.
        system_end: last block of the system tier, None without system.
        markers: breakpoints in prompt order, including that of automatic caching.
        session: conversation of the request.
        workspace: isolation scope (R25).
        ttft: seconds from start to the first byte of the response (R24).
        output: output tokens.
        usage: usage reported by the API, None if not recorded.
        source: least trusted token source among its blocks.
        tail: uncacheable tokens outside all blocks: the incomplete last block of a trace, the API's own tool-use
            prompt under `tool_prompt: uncached`.
        batch: sent through the Batch API.
        batch_id: the batch that it is an item of, "" if not known; items of a cold batch never read each other.
        geo: `inference_geo`, "us" costs more.
        speed: "fast" or "".
        server_tools: requests of Anthropic's own tools, by name, if recorded.
        blocks: the blocks, if the trace has them, for reports.
        params: the parameters that affect the prefix, as in `ParsedRequest`.
        api_reason: type of the API's own `diagnostics.cache_miss_reason`, "" if it gave none.
    """

    id: str
    t: float
    model: str
    head: Node
    tools_end: Node | None = None
    system_end: Node | None = None
    markers: tuple[Marker, ...] = ()
    session: str = ""
    workspace: str = "default"
    ttft: float = 0.0
    output: int = 0
    usage: Usage | None = None
    source: str = "estimate"
    batch: bool = False
    batch_id: str = ""
    geo: str = ""
    speed: str = ""
    server_tools: Mapping[str, int] = field(default_factory=dict)
    tail: int = 0
    blocks: tuple[ContentBlock, ...] = ()
    params: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    api_reason: str = ""


def chain(
    blocks: Sequence[ContentBlock], hashing: Hashing, salts: Sequence[int], before: int = 0
) -> list[Node]:
    """The chain of a whole prompt.

    Args:
        blocks: all blocks, in tools, system, messages order.
        hashing: differences that change the prefix.
        salts: hash of the parameters per tier, [3].
        before: tokens that the API adds before the first block.

    Returns:
        One node per block, without the root.
    """
    node = root(salts[TOOLS], before)
    nodes = []
    for block in blocks:
        node = append(node, block, hashing, salts)
        nodes.append(node)
    return nodes


def tier_ends(nodes: Sequence[Node]) -> tuple[Node | None, Node | None]:
    """Last block of the tools tier and of the system tier, None for an empty tier."""
    ends: list[Node | None] = [None, None]
    for node in nodes:
        if node.tier < MESSAGES:
            ends[node.tier] = node
    return ends[0], ends[1]


def last_markable(node: Node | None) -> Node | None:
    """The nearest markable block at or before a block (R4), None if there is none."""
    while node is not None and node.index and not node.markable:
        node = node.parent
    return node if node is not None and node.index else None
