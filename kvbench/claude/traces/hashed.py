"""Prefix chains from lists of fixed-size block hashes (traces of kv-cache-tester and Mooncake)."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.claude.request import MESSAGES, SYSTEM, TEXT, TOOL, TOOLS, Node, mix, root


class HashChain:
    """Converts each prompt's list of hash ids into a chain that shares its nodes with the previous prompt.

    A prompt is cut at the ends of tools and system and wherever an earlier prompt with the same beginning was cut, on
    any branch; the caller chooses the cuts inside its new part. The hashes of the nodes do not depend on the cuts.
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
        self._stable = cuts[-1][0] if cuts else 0  # hash ids before the messages
        self._ids: Sequence[int] = ()
        self._nodes: list[Node] = []  # one per cut of the last prompt
        self._lengths: list[int] = [0]  # hash ids before the first block and up to each of its cuts
        self._places: list[_Place] = [_Place(0, TEXT, -1)]  # likewise
        self._message = -1

    def extend(self, ids: Sequence[int], kinds: Sequence[int] = (TEXT,), pieces: int = 1) -> Node:
        """The chain of the next prompt.

        Args:
            ids: its hash ids.
            kinds: kinds of the content blocks in its new part, in order.
            pieces: number of equal blocks per kind in the new part; 0 cuts at every hash id.
        """
        # a prompt that ended within tools or system had other tiers
        shared = common(self._ids, ids) if len(self._ids) >= self._stable else 0
        self._ids = ids
        while self._lengths[-1] > shared:
            self._lengths.pop()
            self._places.pop()
            self._nodes.pop()
        self._message += 2
        if pieces:
            while (known := self._places[-1].following(ids)) is not None:
                self._append(ids, known.end, known.kind, known.message)
        for length, _ in self._cuts:
            if self._lengths[-1] < length <= len(ids):
                self._append(ids, length, TEXT, self._message)
        if not pieces:
            self._each(ids)
        for _, end, kind in cut(self._lengths[-1], len(ids), kinds, pieces):
            self._append(ids, end, kind, self._message)
        return self._nodes[-1] if self._nodes else self._root

    def tier_ends(self) -> tuple[Node | None, Node | None]:
        """Last block of tools and of system in the last prompt."""
        ends: dict[int, Node] = {}
        for node in self._nodes:
            if node.tier == MESSAGES:
                break
            ends[node.tier] = node
        return ends.get(TOOLS), ends.get(SYSTEM)

    def _append(self, ids: Sequence[int], end: int, kind: int, message: int) -> None:
        """Adds the block that ends after `end` hash ids."""
        tier = MESSAGES
        if end <= self._stable:
            for length, name in self._cuts:
                if end <= length <= len(ids):
                    tier, kind, message = name, TOOL if name == TOOLS else TEXT, -1
                    break
        part = ids[self._lengths[-1] : end]
        node = self._nodes[-1] if self._nodes else self._root
        tokens = end * self.block_size
        self._nodes.append(Node(node, mix(node.cum, part), tokens, tier, kind, message, contents=part))
        self._lengths.append(end)
        self._places.append(self._places[-1].reach(part, _Place(end, kind, message)))

    def _each(self, ids: Sequence[int]) -> None:
        """One block per hash id: the cuts are the same on every branch, so no place is kept."""
        done, size, message = self._lengths[-1], self.block_size, self._message
        node = self._nodes[-1] if self._nodes else self._root
        for end, value in enumerate(ids[done:], done + 1):
            part = (value,)
            node = Node(node, mix(node.cum, part), end * size, MESSAGES, TEXT, message, contents=part)
            self._nodes.append(node)
        self._lengths += range(done + 1, len(ids) + 1)
        self._places += [self._places[0]] * (len(ids) - done)


class _Place:
    """A place where a prompt was cut, the block that ends there, and the cuts that follow on every branch."""

    __slots__ = ("_next", "end", "kind", "message")

    def __init__(self, end: int, kind: int, message: int) -> None:
        self.end = end
        self.kind = kind
        self.message = message
        # by first id: (ids up to the next cut, that cut); none of them begins another one
        self._next: dict[int, list[tuple[Sequence[int], _Place]]] | None = None

    def following(self, ids: Sequence[int]) -> _Place | None:
        """The next cut that an earlier prompt has in common with this one, None if there is none."""
        if self._next is not None and self.end < len(ids):
            for part, place in self._next.get(ids[self.end], ()):
                if ids[place.end - 1 : place.end] == part[-1:] and ids[self.end : place.end] == part:
                    return place
        return None

    def reach(self, part: Sequence[int], after: _Place) -> _Place:
        """Adds a cut, or finds it; a block that has it inside is split there."""
        beyond = []
        size = len(part)
        if self._next is None:
            self._next = {}
        for held, place in self._next.get(part[0], ()):
            if held == part:
                return place
            if len(held) > size and held[size - 1] == part[-1] and held[:size] == part:
                if after._next is None:
                    after._next = {}
                after._next.setdefault(held[size], []).append((held[size:], place))
            else:
                beyond.append((held, place))
        self._next[part[0]] = [*beyond, (part, after)]
        return after


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
