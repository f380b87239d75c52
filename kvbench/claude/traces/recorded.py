"""Traces written by the recorder: JSON lines, each with the blocks that are new since the previous prompt."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.behaviour import resolved
from kvbench.claude.files import files_of, place_of, rows_of
from kvbench.claude.names import BEDROCK, VERTEX, parse_name
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
from kvbench.claude.traces.checks import MALFORMED, check, text_of, whole
from kvbench.claude.traces.problems import Problems
from kvbench.config.errors import UserError

Row = tuple[int, str, Any]
"""Number of a line, its place for messages, and its JSON."""

WINDOW = 256  # maximum of concurrent requests


@dataclass
class RecordedTrace(Trace):
    """Recorded files, read line by line.

    The files of a folder are recordings of their own: their conversations and workspaces are apart, because the names
    that a recorder gives hold in one file only.

    Attributes:
        path: the JSONL file, or a folder of them and of sub-folders; .gz too.
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
        """Lists the files.

        Raises:
            UserError: no such file.
        """
        self.path = Path(self.path)
        self.files = files_of(self.path, (".jsonl",))
        self._reported = False

    def requests(self, assumptions: Assumptions) -> Iterator[Request]:
        """See Trace; lines are ordered by the end of the response, requests are yielded by start time."""
        problems = Problems() if self._reported else self.problems
        files = [self._file(file, assumptions.hashing, problems) for file in self.files]
        yield from heapq.merge(*files, key=lambda request: request.t)
        self._reported = True

    def _file(self, file: Path, hashing: Hashing, problems: Problems) -> Iterator[Request]:
        """The requests of one file by start time."""
        waiting: list[tuple[float, int, Request]] = []
        latest = float("-inf")
        for number, request in self._lines(file, hashing, problems):
            heapq.heappush(waiting, (request.t, number, request))
            if len(waiting) > WINDOW:
                latest = max(latest, waiting[0][0])
                yield _not_before(latest, heapq.heappop(waiting)[2])
        while waiting:
            latest = max(latest, waiting[0][0])
            yield _not_before(latest, heapq.heappop(waiting)[2])

    def _lines(self, file: Path, hashing: Hashing, problems: Problems) -> Iterator[tuple[int, Request]]:
        sessions: dict[str, _Session] = {}
        names: set[str] = set()
        ended = float("-inf")
        place = place_of(file, self.path)
        prefix = "" if file == self.path else f"{place}: "
        for number, where, row in self._rows(file, place, problems):
            try:
                request = self._row(row, sessions, hashing, prefix)
                end = float(row["t"]) + float(row.get("duration") or 0.0)
            except UserError as error:
                problems.skip(where, str(error))
                continue
            except MALFORMED as error:
                problems.skip(where, f"{type(error).__name__}: {error}")
                continue
            if request is None:
                continue
            if request.batch_id and request.id in names:
                problems.skip(where, f"the item {request.id} stands on an earlier line")
                continue
            # tolerate a millisecond of rounding
            if end < ended - 1e-3:
                problems.corrected(where, "its time runs backwards; used in order of start time")
            ended = max(ended, end) if math.isfinite(end) else ended
            if request.id in names:
                problems.corrected(where, f"its id {request.id} is used before; the line is added to it")
                request.id = f"{request.id}, line {number}"
            names.add(request.id)
            yield number, request

    def _rows(self, file: Path, place: str, problems: Problems) -> Iterator[Row]:
        """The lines of one file."""
        yield from rows_of(file, place, problems)

    def _row(
        self, row: Mapping[str, Any], sessions: dict[str, _Session], hashing: Hashing, prefix: str
    ) -> Request | None:
        if row.get("status", 200) >= 400:
            if not self._reported:
                self.rejected.append((f"{prefix}{row['id']}", (row.get("error") or {}).get("message", "")))
            return None
        session = sessions.setdefault(text_of(row, "session"), _Session())
        # first of all, because later lines extend this prompt even if nothing else of the line can be used
        prompt, same = session.read(row)
        model = self.prices.resolve(row["model"])
        before, tail = split_hidden(self.prices.tool_prompt(model, row.get("tool_prompt", "")), hashing)
        hidden = before, tail + whole("tail", row.get("tail", 0))
        usage = usage_of(row.get("usage"))
        if usage is not None and self.calibrate:
            prompt.calibrate(row, same, usage, hidden)
        params = resolved(row.get("params") or {}, model, text_of(row, "speed"))
        nodes = prompt.chain(salts(params, hashing), hidden[0], hashing)
        parsed = ParsedRequest(
            tuple(prompt.blocks),
            tuple((index, TTL_SECONDS[ttl]) for index, ttl in row.get("markers") or ()),
            TTL_SECONDS[row["automatic"]] if row.get("automatic") else None,
            params,
        )
        if any(not 0 <= index < len(nodes) for index, _ in parsed.markers):
            raise UserError(f"markers={row['markers']}: the prompt has {len(nodes)} blocks")
        markers = placed_markers(nodes, parsed)
        if wrong := marker_error(markers):
            raise UserError(wrong)
        tools_end, system_end = tier_ends(nodes)
        request = Request(
            id=f"{prefix}{row['id']}",
            t=float(row["t"]),
            model=model,
            head=nodes[-1],
            tools_end=tools_end,
            system_end=system_end,
            markers=markers,
            session=f"{prefix}{text_of(row, 'session')}",
            workspace=f"{prefix}{_scope(model, row)}",
            ttft=float(row.get("ttft") or 0.0),
            output=usage.output if usage is not None else int(row.get("output") or 0),
            usage=usage,
            source=weakest({block.source for block in parsed.blocks}),
            batch=bool(row.get("batch")),
            batch_id=f"{prefix}{row['batch']}" if isinstance(row.get("batch"), str) else "",
            geo=text_of(row, "geo"),
            speed=text_of(row, "speed"),
            server_tools=tools_of(row.get("server_tools")),
            tail=hidden[1],
            blocks=parsed.blocks,
            params=params,
            api_reason=_api_reason(row),
        )
        check(request, self.prices)
        session.use(prompt)
        return request


def _scope(model: str, row: Mapping[str, Any]) -> str:
    """Isolation scope of a line: Bedrock and Google Cloud isolate organisations only (R25)."""
    cloud = parse_name(model).platform in (BEDROCK, VERTEX)
    return "organization" if cloud else text_of(row, "workspace") or "default"


def _api_reason(row: Mapping[str, Any]) -> str:
    """Type of the API's own reason for a miss, "" if it gave none."""
    reason = (row.get("diagnostics") or {}).get("cache_miss_reason") or {}
    return str(reason.get("type") or "")


def _not_before(latest: float, request: Request) -> Request:
    request.t = max(request.t, latest)
    return request


@dataclass
class _Prompt:
    """A prompt of a conversation.

    Attributes:
        blocks: its blocks.
        contents: hash of the contents up to and including each block.
        nodes: leading nodes of its chain.
        start: salts and tokens before the first block, under which the nodes were made.
    """

    blocks: list[ContentBlock] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    start: tuple[tuple[int, int, int], int] | None = None

    def extended(self, row: Mapping[str, Any], new: Sequence[ContentBlock], same: int) -> _Prompt | None:
        """The prompt of a line that begins with `same` blocks of this one; None if its hash says otherwise."""
        contents = self.contents[:same]
        for block in new:
            contents.append(mix(contents[-1] if contents else 1, (block.hash,)))
        if same > len(self.blocks) or ("prompt" in row and int(row["prompt"], 16) != contents[-1]):
            return None
        return _Prompt([*self.blocks[:same], *new], contents, self.nodes[:same], self.start)

    def calibrate(self, row: Mapping[str, Any], same: int, usage: Usage, hidden: tuple[int, int]) -> None:
        """Scales the token counts of the new blocks to the reported usage."""
        if same < len(self.blocks):
            before = hidden[0] + sum(block.tokens for block in self.blocks[:same])
            self.blocks[same:] = _calibrated(self.blocks[same:], before, row, same, usage, hidden[1])

    def chain(self, tier_salts: tuple[int, int, int], before: int, hashing: Hashing) -> list[Node]:
        """One node per block; those of the previous prompt are used again where they are the same."""
        if (tier_salts, before) != self.start:
            self.nodes, self.start = [], (tier_salts, before)
        node = self.nodes[-1] if self.nodes else root(tier_salts[TOOLS], before)
        for block in self.blocks[len(self.nodes) :]:
            node = append(node, block, hashing, tier_salts)
            self.nodes.append(node)
        return self.nodes


class _Session:
    """The prompts that the next line of one conversation may extend."""

    def __init__(self) -> None:
        self._last = self._used = _Prompt()

    def read(self, row: Mapping[str, Any]) -> tuple[_Prompt, int]:
        """The prompt of a line, and how many of its blocks are those of an earlier prompt."""
        same = row.get("same", 0)
        if type(same) is not int or not 0 <= same <= max(len(self._last.blocks), len(self._used.blocks)):
            raise UserError(f"same={same}, but the previous prompt has {len(self._last.blocks)} blocks")
        new = [entry if isinstance(entry, ContentBlock) else _block(entry) for entry in row["blocks"]]
        if not new and not same:
            raise UserError("the request has no blocks")
        # a line that is left out may still be the one that the next line extends, or a stray copy of another one
        found = self._last.extended(row, new, same) or self._used.extended(row, new, same)
        if found is None:
            raise UserError("it extends a line that is missing or unreadable")
        tiers = [block.tier for block in found.blocks]
        if tiers != sorted(tiers):
            raise UserError("blocks are not in tools, system, messages order")
        self._last = found
        return found, same

    def use(self, prompt: _Prompt) -> None:
        """Notes that a line was used."""
        self._used = prompt


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
    tokens = whole("tokens", entry["tokens"])
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
        content=int(entry.get("content", "0"), 16),
        undated=int(entry.get("undated", "0"), 16),
        unnumbered=int(entry.get("unnumbered", "0"), 16),
    )


def tools_of(entry: Mapping[str, Any] | None) -> Mapping[str, int]:
    """Requests of Anthropic's own tools on a trace line.

    Raises:
        UserError: a count that is none.
    """
    return {str(name): whole(f"server_tools.{name}", count) for name, count in (entry or {}).items()}


def usage_of(entry: Mapping[str, Any] | None) -> Usage | None:
    """The usage of a trace line, None without one.

    Raises:
        UserError: a count that is none.
    """
    if entry is None:
        return None
    if any(not isinstance(value, int) or value < 0 for value in entry.values()):
        raise UserError(f"usage={dict(entry)}: must be whole numbers, not negative")
    return Usage(**entry)
