"""The seed article's 10-turn cost table, recomputed with the rule engine next to the article's figures."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from kvbench.claude.prices import PriceBook
from kvbench.claude.request import (
    SYSTEM,
    TEXT,
    TOOL,
    TOOLS,
    ContentBlock,
    Hashing,
    Marker,
    Node,
    Request,
    append,
    root,
)
from kvbench.claude.rules import Cache

MODEL = "claude-sonnet-4-6"
TURNS = 10
TOOL_TOKENS, SYSTEM_TOKENS, CONTEXT_TOKENS = 1_000, 2_000, 10_000
ARTICLE_PLAIN, ARTICLE_CACHED = 390_000_000, 85_800_000  # as printed in the article, nano-dollars


@dataclass(frozen=True)
class Case:
    """One interpretation of the table.

    Attributes:
        name: short name.
        meaning: what changes between the turns.
        tools: TTL in seconds of a marker on the last tool, 0 for no marker.
        prompt: the same on the system prompt.
        context: the same on the retrieved context, which is part of `system`.
        fresh: each turn retrieves a different context.
        gap: seconds between turns.
        printed: the article's figure in nano-dollars, None if there is none.
        tool_tokens: size of the tool definitions.
    """

    name: str
    meaning: str
    tools: int = 0
    prompt: int = 0
    context: int = 0
    fresh: bool = False
    gap: float = 60.0
    printed: int | None = None
    tool_tokens: int = TOOL_TOKENS


def cases() -> list[Case]:
    """The interpretations to compare."""
    return [
        Case("no cache", "no cache_control", printed=ARTICLE_PLAIN),
        Case("same context", "the 10k context repeats", 300, 0, 300, printed=ARTICLE_CACHED),
        Case("same context, 1h", "the 10k context repeats, ttl 1h", 3600, 0, 3600),
        Case("stable part only", "new context each turn; marked: tools, system prompt", 300, 300, 0, True),
        Case("new context", "new context each turn; marked: system prompt, context", 300, 300, 300, True),
        Case("new context, as coded", "new context each turn; marked: tools, context", 300, 0, 300, True),
        Case("gaps over 5 min", "the 10k context repeats, 6 minutes between turns", 300, 0, 300, gap=360.0),
    ]


def cost(case: Case, prices: PriceBook, date: datetime.date = datetime.date(2026, 11, 24)) -> int:
    """Input cost of the ten turns in nano-dollars, without history and output, as in the article."""
    start = datetime.datetime.combine(date, datetime.time(), datetime.UTC).timestamp()
    cache, total = Cache(), 0
    for turn in range(TURNS):
        nodes = _prompt(turn if case.fresh else 0, case.tool_tokens)
        lifetimes = (case.tools, case.prompt, case.context)
        markers: list[Marker] = [(node, ttl) for node, ttl in zip(nodes, lifetimes, strict=True) if ttl]
        request = Request(
            id=f"turn {turn}", t=start + turn * case.gap, model=MODEL, head=nodes[-1], source="usage"
        )
        outcome = cache.serve(request, markers, prices.minimum(MODEL, request.t))
        total += prices.cost(request, outcome.usage)[0]
    return total


def table(prices: PriceBook) -> list[dict[str, object]]:
    """Rows of the recomputed table: name, meaning, nano-dollars, share of the uncached, printed figure."""
    rows = []
    plain = cost(cases()[0], prices)
    for case in cases():
        paid = cost(case, prices)
        rows.append(
            {
                "reading": case.name,
                "meaning": case.meaning,
                "nano_usd": paid,
                "of_uncached": paid / plain,
                "article_nano_usd": case.printed,
            }
        )
    return rows


def _prompt(context: int, tool_tokens: int) -> list[Node]:
    blocks = [
        ContentBlock(TOOLS, TOOL, 1, tool_tokens),
        ContentBlock(SYSTEM, TEXT, 2, SYSTEM_TOKENS),
        ContentBlock(SYSTEM, TEXT, 100 + context, CONTEXT_TOKENS),
    ]
    node, nodes = root(), []
    for block in blocks:
        node = append(node, block, Hashing(), (0, 0, 0))
        nodes.append(node)
    return nodes
