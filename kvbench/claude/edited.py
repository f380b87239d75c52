"""Blocks that were edited in their place: what a whole block hides from a measure that goes by blocks.

A clock in a system prompt of one block leaves nothing that was sent before, block by block. What is the same in it can
still be told, as the block is hashed without its dates and numbers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvbench.claude.changes import MASKED, Change, first_change
from kvbench.claude.request import MESSAGES, Node, Request


@dataclass(frozen=True, slots=True)
class Edited:
    """A block that stands where an earlier request had another form of it.

    Attributes:
        change: the difference.
        other: the earlier request.
        start, end: tokens before it and up to its end.
        same: it differs in dates, times, numbers or random ids only.
    """

    change: Change
    other: Request
    start: int
    end: int
    same: bool


@dataclass
class EditedBlocks:
    """Finds the first edited block of each request of one workspace and model."""

    _last: dict[tuple[int, int], Request] = field(
        default_factory=dict
    )  # by hashes of what precedes, and of the rest

    def find(
        self, request: Request, nodes: Sequence[Node], shared: int, previous: Request | None
    ) -> Edited | None:
        """The block in which a request first differs from the conversation's previous one, or from a like one.

        The end of the conversation is new by nature, and no edit.

        Args:
            request: the request.
            nodes: its blocks.
            shared: blocks at its start that were sent before.
            previous: the previous request of its conversation.
        """
        if shared >= len(nodes) or not request.blocks:
            return None
        node = nodes[shared]
        if node.tier == MESSAGES and node.message >= request.head.message:
            return None
        like = next(filter(None, map(self._last.get, self._keys(request, node))), None)
        for other in (previous, like):
            if other is None or (change := first_change(other, request)) is None:
                continue
            if change.edited and change.index == shared:
                start = nodes[shared - 1].tokens if shared else 0
                return Edited(change, other, start, node.tokens, change.reason in MASKED)
        return None

    def remember(self, request: Request, nodes: Sequence[Node]) -> None:
        """Notes the blocks of a request that hold dates, numbers or ids."""
        for node in nodes if request.blocks else ():
            self._last.update(dict.fromkeys(self._keys(request, node), request))

    def _keys(self, request: Request, node: Node) -> Sequence[tuple[int, int]]:
        block = request.blocks[node.index - 1]
        before = node.parent.cum if node.parent is not None else 0
        return [(before, mask) for mask in (block.undated, block.unnumbered) if mask]
