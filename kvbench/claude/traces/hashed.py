"""Prefix chains from lists of fixed-size block hashes (Claude Code and Mooncake traces)."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.claude.request import MESSAGES, SYSTEM, TEXT, TOOL, TOOLS, Node, mix, root


class HashChain:
    """Converts each prompt's list of hash ids into a chain that shares its nodes with the previous prompt.

    A prompt is cut at the ends of tools and system and at the ends of earlier prompts; the caller chooses the cuts
    inside its new part. The hashes of the nodes do not depend on the cuts.
    """

    def __init__(self, block_size: int, cuts: Sequence[tuple[int, int]] = (), scope: int = 0) -> None:
        """An empty chain.

        Args:
            block_size: tokens per hash id.
            cuts: (number of hash ids, tier that ends there) of tools and system.
            scope: scope of the hash ids; chains of different scopes share nothing.
        """
        self._root = root(scope)
        self.block_size = block_size
        self._cuts = cuts
        self._ids: Sequence[int] = ()
        self._nodes: list[Node] = []  # one per cut of the last prompt
        self._lengths: list[int] = []  # hash ids up to and including each of them
        self._message = -1

    def extend(self, ids: Sequence[int], kinds: Sequence[int] = (TEXT,), pieces: int = 1) -> Node:
        """The chain of the next prompt.

        Args:
            ids: its hash ids.
            kinds: kinds of the content blocks in its new part, in order.
            pieces: number of equal blocks per kind in the new part; 0 cuts at every hash id.
        """
        shared = common(self._ids, ids)
        self._ids = ids
        while self._lengths and self._lengths[-1] > shared:
            self._lengths.pop()
            self._nodes.pop()
        node = self._nodes[-1] if self._nodes else self._root
        done = self._lengths[-1] if self._lengths else 0
        for length, tier in self._cuts:
            if done < length <= len(ids):
                node = self._append(node, ids, done, length, tier, TOOL if tier == TOOLS else TEXT)
                done = length
        self._message += 2
        for start, end, kind in cut(done, len(ids), kinds, pieces):
            node = self._append(node, ids, start, end, MESSAGES, kind)
        return node

    def tier_ends(self) -> tuple[Node | None, Node | None]:
        """Last block of tools and of system in the last prompt."""
        ends: dict[int, Node] = {}
        for node in self._nodes[:2]:
            if node.tier != MESSAGES:
                ends[node.tier] = node
        return ends.get(TOOLS), ends.get(SYSTEM)

    def _append(self, node: Node, ids: Sequence[int], start: int, end: int, tier: int, kind: int) -> Node:
        cum = mix(node.cum, ids[start:end])
        message = self._message if tier == MESSAGES else -1
        node = Node(node, cum, end * self.block_size, tier, kind, message)
        self._nodes.append(node)
        self._lengths.append(end)
        return node


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix of two lists; an extension needs only one comparison."""
    low, high = 0, min(len(first), len(second))
    # avoid copying the first list, which is the shorter one in an extension
    if (first if high == len(first) else first[:high]) == second[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def cut(start: int, end: int, kinds: Sequence[int], pieces: int) -> list[tuple[int, int, int]]:
    """Cuts [start, end) into content blocks of about equal size, at least one id each."""
    length = end - start
    if length <= 0:
        return []
    parts = length if pieces == 0 else min(length, pieces * len(kinds))
    bounds = [start + length * part // parts for part in range(parts + 1)]
    return [(bounds[part], bounds[part + 1], kinds[part * len(kinds) // parts]) for part in range(parts)]
