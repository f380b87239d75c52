"""What a prompt repeats of earlier ones and did not read, block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvbench.claude.changes import common_blocks, path
from kvbench.claude.request import Node, Request, Usage


@dataclass(frozen=True, slots=True)
class Unit:
    """A block that was sent before and not read, or what is left of it.

    Attributes:
        content: hash of its content.
        start: tokens before it.
        end: tokens up to its end.
        index: index of its node.
    """

    content: int
    start: int
    end: int
    index: int


def missed_units(nodes: Sequence[Node], read: int, sent: Mapping[int, int]) -> list[Unit]:
    """What was sent before and lies behind the tokens that were read, in order."""
    missed: list[Unit] = []
    for node in reversed(nodes):
        if node.tokens <= read:
            break
        parent = node.parent
        # the API's own tokens before the first block belong to it
        start = parent.tokens if parent is not None and parent.index else 0
        count = len(node.contents) or 1
        for number in range(count - 1, -1, -1):
            content = node.contents[number] if node.contents else node.cum
            if content in sent:
                first = start + (node.tokens - start) * number // count
                last = start + (node.tokens - start) * (number + 1) // count
                if last > read:
                    missed.append(Unit(content, max(first, read), last, node.index))
    return missed[::-1]


def also_sent(units: Sequence[Unit], other: Request, now: Request) -> list[Unit]:
    """The units that another request also sent behind what both prompts share."""
    index = common_blocks(other, now)
    left = Counter(content for node in path(other.head)[index:] for content in node.contents)
    found = []
    for unit in units:
        if left[unit.content] > 0:
            left[unit.content] -= 1
            found.append(unit)
    return found


def with_read(now: Usage, usage: Usage, units: Sequence[Unit]) -> Usage:
    """Usage with some units read that were billed in the order read, 1h write, 5m write, uncached."""
    bounds = (usage.read, usage.read + usage.write_1h, usage.read + usage.write_1h + usage.write_5m)
    moved = [0, 0, 0]
    for unit in units:
        for kind, (first, last) in enumerate(
            ((bounds[0], bounds[1]), (bounds[1], bounds[2]), (bounds[2], unit.end))
        ):
            moved[kind] += max(0, min(unit.end, last) - max(unit.start, first))
    hour = min(moved[0], now.write_1h)
    five = min(moved[1], now.write_5m)
    plain = min(moved[2], now.uncached)
    return Usage(
        now.read + hour + five + plain,
        now.write_5m - five,
        now.write_1h - hour,
        now.uncached - plain,
        now.output,
    )
