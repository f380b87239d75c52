"""Traces written by the recorder: JSON lines, each with the blocks that are new since the previous prompt."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import (
    KINDS,
    TIERS,
    TOOLS,
    TTL_SECONDS,
    ContentBlock,
    Hashing,
    Node,
    Request,
    Usage,
    append,
    mix,
    root,
    tier_ends,
)
from kvbench.claude.request_json import ParsedRequest, placed_markers, salts, split_hidden
from kvbench.claude.rules import marker_error
from kvbench.claude.simulate import Trace
from kvbench.claude.tokens import weakest
from kvbench.claude.traces.problems import Problems
from kvbench.config.errors import UserError

WINDOW = 256  # maximum of concurrent requests


@dataclass
class RecordedTrace(Trace):
    """One recorded file, read line by line.

    Attributes:
        path: the JSONL file.
        prices: defines the known models.
        calibrate: scale the token counts of new blocks so that prompts add up to their recorded usage.
        problems: collects defects of the file on the first pass.
        rejected: (id, error) of requests rejected by the API, on the first pass.
    """

    path: Path
    prices: PriceBook
    calibrate: bool = True
    problems: Problems = field(default_factory=Problems)
    rejected: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Validates the path.

        Raises:
            UserError: no such file.
        """
        self.path = Path(self.path)
        if not self.path.is_file():
            raise UserError(f"trace={self.path}: no such file")
        self._reported = False

    def requests(self, assumptions: Assumptions) -> Iterator[Request]:
        """See Trace; lines are ordered by the end of the response, requests are yielded by start time."""
        problems = Problems() if self._reported else self.problems
        waiting: list[tuple[float, int, Request]] = []
        latest = float("-inf")
        for number, request in self._lines(assumptions.hashing, problems):
            heapq.heappush(waiting, (request.t, number, request))
            if len(waiting) > WINDOW:
                latest = max(latest, waiting[0][0])
                yield _not_before(latest, heapq.heappop(waiting)[2])
        while waiting:
            latest = max(latest, waiting[0][0])
            yield _not_before(latest, heapq.heappop(waiting)[2])
        self._reported = True

    def _lines(self, hashing: Hashing, problems: Problems) -> Iterator[tuple[int, Request]]:
        sessions: dict[str, _Session] = {}
        ended = float("-inf")
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{self.path.name}, line {number}"
                try:
                    row = json.loads(line)
                    request = self._row(row, sessions, hashing)
                    end = float(row["t"]) + float(row.get("duration") or 0.0)
                except UserError as error:
                    problems.skip(where, str(error))
                    continue
                except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                    problems.skip(where, f"{type(error).__name__}: {error}")
                    continue
                # tolerate a millisecond of rounding
                if end < ended - 1e-3:
                    problems.corrected(where, "its time runs backwards; used in order of start time")
                ended = max(ended, end)
                if request is not None:
                    yield number, request

    def _row(self, row: Mapping[str, Any], sessions: dict[str, _Session], hashing: Hashing) -> Request | None:
        if row.get("status", 200) >= 400:
            if not self._reported:
                self.rejected.append((row["id"], (row.get("error") or {}).get("message", "")))
            return None
        usage = _usage(row.get("usage"))
        session = sessions.setdefault(row.get("session", ""), _Session())
        model = self.prices.resolve(row["model"])
        hidden = split_hidden(self.prices.tool_prompt(model, row.get("tool_prompt", "")), hashing)
        nodes, blocks = session.extend(row, usage if self.calibrate else None, hashing, hidden)
        parsed = ParsedRequest(
            tuple(blocks),
            tuple((index, TTL_SECONDS[ttl]) for index, ttl in row.get("markers") or ()),
            TTL_SECONDS[row["automatic"]] if row.get("automatic") else None,
            row.get("params") or {},
        )
        markers = placed_markers(nodes, parsed)
        if wrong := marker_error(markers):
            raise UserError(wrong)
        tools_end, system_end = tier_ends(nodes)
        return Request(
            id=row["id"],
            t=float(row["t"]),
            model=model,
            head=nodes[-1],
            tools_end=tools_end,
            system_end=system_end,
            markers=markers,
            session=row.get("session", ""),
            workspace=row.get("workspace", "default"),
            ttft=float(row.get("ttft") or 0.0),
            output=usage.output if usage is not None else int(row.get("output") or 0),
            usage=usage,
            source=weakest({block.source for block in blocks}),
            batch=bool(row.get("batch")),
            geo=row.get("geo", ""),
            speed=row.get("speed", ""),
            tail=hidden[1],
            blocks=parsed.blocks,
        )


def _not_before(latest: float, request: Request) -> Request:
    request.t = max(request.t, latest)
    return request


class _Session:
    """The previous prompt of one conversation."""

    def __init__(self) -> None:
        self._blocks: list[ContentBlock] = []
        self._nodes: list[Node] = []
        self._contents: list[int] = []  # hash of the contents up to and including each block
        self._start: tuple[tuple[int, int, int], int] | None = None  # salts and tokens before the first block

    def extend(
        self, row: Mapping[str, Any], usage: Usage | None, hashing: Hashing, hidden: tuple[int, int]
    ) -> tuple[list[Node], list[ContentBlock]]:
        same = row.get("same", 0)
        if not 0 <= same <= len(self._blocks):
            raise UserError(f"same={same}, but the previous prompt has {len(self._blocks)} blocks")
        new = [_block(entry) for entry in row["blocks"]]
        if not new and not same:
            raise UserError("the request has no blocks")
        contents = self._contents[:same]
        for block in new:
            contents.append(mix(contents[-1] if contents else 1, (block.hash,)))
        if "prompt" in row and int(row["prompt"], 16) != contents[-1]:
            raise UserError("it extends a line that is missing or unreadable")
        blocks = [*self._blocks[:same], *new]
        if usage is not None and new:
            before = hidden[0] + sum(block.tokens for block in blocks[:same])
            blocks[same:] = _calibrated(new, before, row, same, usage, hidden[1])
        tier_salts = salts(row.get("params") or {}, hashing)
        start = (tier_salts, hidden[0])
        nodes = self._nodes[:same] if start == self._start else []
        node = nodes[-1] if nodes else root(tier_salts[TOOLS], hidden[0])
        for block in blocks[len(nodes) :]:
            if block.tier < node.tier:
                raise UserError("blocks are not in tools, system, messages order")
            node = append(node, block, hashing, tier_salts)
            nodes.append(node)
        self._blocks, self._nodes, self._start, self._contents = blocks, nodes, start, contents
        return nodes, blocks


def _calibrated(
    new: Sequence[ContentBlock], before: int, row: Mapping[str, Any], same: int, usage: Usage, tail: int
) -> list[ContentBlock]:
    """New blocks with token counts scaled to the reported usage, at the last marker and at the end.

    Args:
        new: blocks that the previous prompt did not have.
        before: tokens of the shared blocks and of the API's own tokens before them.
        row: the trace line.
        same: number of shared blocks.
        usage: reported usage.
        tail: uncached tokens outside all blocks.
    """
    cached = usage.total - usage.uncached
    last = max((index for index, _ in row.get("markers") or ()), default=-1) - same
    if row.get("automatic"):
        last = len(new) - 1
    if cached and 0 <= last < len(new) - 1 and cached > before:
        return [*_scaled(new[: last + 1], cached - before), *_scaled(new[last + 1 :], usage.uncached - tail)]
    return _scaled(new, usage.total - before - tail)


def _scaled(blocks: Sequence[ContentBlock], total: int) -> list[ContentBlock]:
    counted = sum(block.tokens for block in blocks)
    if total <= 0 or not counted or total == counted:
        return list(blocks)
    done = used = 0
    scaled = []
    for block in blocks:
        done += block.tokens
        tokens = total * done // counted - used
        used += tokens
        scaled.append(replace(block, tokens=tokens, source="scaled"))
    return scaled


def _block(entry: Mapping[str, Any]) -> ContentBlock:
    tokens = entry["tokens"]
    if not isinstance(tokens, int) or tokens < 0:
        raise UserError(f"tokens={tokens}: must be a whole number, not negative")
    return ContentBlock(
        tier=TIERS.index(entry["tier"]),
        kind=KINDS.index(entry["kind"]),
        hash=int(entry["hash"], 16),
        tokens=tokens,
        source=entry.get("source", "estimate"),
        order=int(entry.get("order", "0"), 16),
        string=entry.get("string", False),
        message=entry.get("message", -1),
        type=entry.get("type", "text"),
        markable=entry.get("markable", True),
    )


def _usage(entry: Mapping[str, Any] | None) -> Usage | None:
    if entry is None:
        return None
    if any(not isinstance(value, int) or value < 0 for value in entry.values()):
        raise UserError(f"usage={dict(entry)}: must be whole numbers, not negative")
    return Usage(**entry)
