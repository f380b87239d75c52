"""Chains and requests made by hand, and the shipped price book."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

import pytest

from kvbench.claude.prices import PriceBook
from kvbench.claude.request import MESSAGES, TEXT, ContentBlock, Hashing, Node, Request, append, root

SONNET = "claude-sonnet-4-6"


@pytest.fixture(scope="session")
def prices() -> PriceBook:
    return PriceBook.load()


@pytest.fixture(scope="session")
def day() -> Callable[..., float]:
    """Seconds since the epoch of a date."""

    def seconds(year: int, month: int, day_: int) -> float:
        return datetime.datetime(year, month, day_, tzinfo=datetime.UTC).timestamp()

    return seconds


@pytest.fixture(scope="session")
def blocks() -> Callable[..., list[Node]]:
    """Nodes of a prompt from (number of blocks, tokens per block); names seed the hashes, kinds are optional."""

    def build(
        count: int,
        tokens: int = 100,
        *,
        start: Node | None = None,
        seed: int = 0,
        kinds: Sequence[int] = (),
        tier: int = MESSAGES,
        messages: Sequence[int] = (),
    ) -> list[Node]:
        node, nodes = start or root(), []
        for number in range(count):
            kind = kinds[number] if kinds else TEXT
            message = messages[number] if messages else number
            block = ContentBlock(
                tier, kind, seed * 1000 + node.index, tokens, source="usage", message=message
            )
            node = append(node, block, Hashing(), (0, 0, 0))
            nodes.append(node)
        return nodes

    return build


@pytest.fixture(scope="session")
def ask() -> Callable[..., Request]:
    """A request that ends at a node."""

    def build(head: Node, t: float = 0.0, **fields: object) -> Request:
        values = {"id": f"r{t}", "model": SONNET, "source": "usage", **fields}
        return Request(t=t, head=head, **values)  # type: ignore[arg-type]

    return build
