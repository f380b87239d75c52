"""The rule engine: the prompt cache of one organisation.

The rules (R1-R26) follow the prompt-caching documentation as of 2026-11; `Assumptions` covers what it leaves open. The
same engine drives the simulator, the planner and the loopback server.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.request import (
    MESSAGES,
    THINKING,
    TOOL_RESULT,
    TOOL_USE,
    Marker,
    Node,
    Request,
    Usage,
)

MAX_MARKERS = 4
LOOKBACK = 20
EXACT_SOURCES = frozenset({"usage", "fixture"})
UNDECIDED_SHARE = 20  # an estimated count within 1/20 (5 %) of a minimum is undecided
UNNAMED_BATCH = "unnamed"
SWEEP_EVERY = 512  # writes between two sweeps of expired entries

_RUNS = (TOOL_USE, TOOL_RESULT)


def marker_error(markers: Sequence[Marker]) -> str:
    """The error in a request's markers (R3, R16), empty if they are valid.

    Args:
        markers: explicit and automatic markers in prompt order.
    """
    if len(markers) > MAX_MARKERS:
        return f"{len(markers)} breakpoints, at most {MAX_MARKERS} are allowed"
    longest_allowed = 3600
    for node, ttl in markers:
        if ttl > longest_allowed:
            return f"a 1h breakpoint (block {node.index}) comes after a 5m one"
        longest_allowed = ttl
    return ""


class Entry:
    """A cached prefix, alive until `expires` and readable from `visible` onwards, but not by items of its own batch."""

    __slots__ = ("batch", "expires", "visible")

    def __init__(self, expires: float, visible: float, batch: str = "") -> None:
        """Both times are seconds since the epoch; `batch` is that of its only writers, "" if there are others."""
        self.expires = expires
        self.visible = visible
        self.batch = batch


Store = dict[int, Entry]
"""Entries of one TTL class in one scope, by cumulative prefix hash."""


@dataclass(slots=True)
class Outcome:
    """Result of serving one request.

    Attributes:
        usage: input tokens by billing class.
        hit: last block of the prefix that was read, None on a miss.
        written: markers that wrote an entry.
        undecided: a marker's prefix is within 5 % of the minimum and its count is an estimate.
    """

    usage: Usage
    hit: Node | None
    written: Sequence[Marker]
    undecided: bool


class Cache:
    """Cached prefixes of one organisation, isolated by workspace and model (R25)."""

    def __init__(self, assumptions: Assumptions | None = None, *, isolation: str = "workspace") -> None:
        """An empty cache.

        Args:
            assumptions: assumptions on undocumented points.
            isolation: "workspace" (Claude API) or "organization" (Bedrock, Google Cloud).
        """
        self.assumptions = assumptions or Assumptions()
        self._by_workspace = isolation == "workspace"
        self._scopes: dict[tuple[str, str], tuple[Store, Store]] = {}
        self.lookback = LOOKBACK + (self.assumptions.lookback == "before")
        self._collapse = self.assumptions.tool_runs == "one"
        self._conversation = self.assumptions.positions == "conversation"
        self._plain = self.assumptions.ttl_lookup == "ignored"
        self._writes = 0
        self._sweep_at = SWEEP_EVERY

    def __len__(self) -> int:
        """Entries held, including expired ones not yet swept."""
        return sum(len(fives) + len(hours) for fives, hours in self._scopes.values())

    def copy(self) -> Cache:
        """An independent copy, for planning."""
        other = Cache(self.assumptions, isolation="workspace" if self._by_workspace else "organization")
        for key, (fives, hours) in self._scopes.items():
            other._scopes[key] = (
                {cum: Entry(entry.expires, entry.visible, entry.batch) for cum, entry in fives.items()},
                {cum: Entry(entry.expires, entry.visible, entry.batch) for cum, entry in hours.items()},
            )
        return other

    def keep_expired(self) -> None:
        """Keeps expired entries, for reports on them; memory then grows with the trace."""
        self._sweep_at = sys.maxsize

    def scope(self, request: Request) -> tuple[Store, Store]:
        """The 5m and the 1h entries that a request can see."""
        key = (request.workspace if self._by_workspace else "", request.model)
        stores = self._scopes.get(key)
        if stores is None:
            stores = self._scopes[key] = ({}, {})
        return stores

    def effective(
        self, request: Request, markers: Sequence[Marker], minimum: int
    ) -> tuple[list[Marker], bool]:
        """Markers that can read and write, including server-tool breakpoints, and whether one is undecided.

        Args:
            request: the request.
            markers: its explicit and automatic markers in prompt order.
            minimum: smallest cacheable prefix in tokens.
        """
        if not markers:
            return [], False
        if request.head.server is not None:
            markers = _with_server_tools(request.head, markers)
        undecided = False
        if request.source not in EXACT_SOURCES:
            margin = minimum // UNDECIDED_SHARE
            undecided = any(abs(node.tokens - minimum) <= margin for node, _ in markers)
            if undecided and self.assumptions.near_minimum != "counted":
                minimum += margin + 1 if self.assumptions.near_minimum == "uncached" else -margin
        return [marker for marker in markers if marker[0].tokens >= minimum], undecided

    def serve(self, request: Request, markers: Sequence[Marker], minimum: int) -> Outcome:
        """Looks up a request, bills it and stores the entries that its markers write.

        Args:
            request: the request; requests must be served in order of start time.
            markers: its markers in prompt order, validated.
            minimum: smallest cacheable prefix of its model on its date, in tokens.
        """
        total = request.head.tokens + request.tail
        usable, undecided = self.effective(request, markers, minimum)
        if not usable:
            return Outcome(Usage(uncached=total, output=request.output), None, (), undecided)
        now = request.t
        fives, hours = self.scope(request)
        batch = batch_of(request)
        hit, entry = self._lookup(usable, fives, hours, now, batch)
        if hit is not None and self.assumptions.lost_reads and self._lost(request):
            hit = entry = None
        start = 0
        if hit is not None and entry is not None:
            start = hit.tokens - hit.tokens % self.assumptions.granularity
            self._refresh(hit, entry, usable, now, fives, hours)
        last_index = -1 if hit is None else hit.index
        written = [marker for marker in usable if marker[0].index > last_index]
        hour_end = start
        for node, ttl in written:
            store = hours if ttl == 3600 else fives
            if ttl == 3600:
                hour_end = node.tokens
            self._write(store, node.cum, now, now + ttl, now + request.ttft, batch)
        # the next marker, if any, rewrites the tokens that rounding a hit down leaves (U8)
        end = written[-1][0].tokens if written else start
        self._writes += len(written)
        if self._writes >= self._sweep_at:
            self.sweep(now)
        usage = Usage(start, end - hour_end, hour_end - start, total - end, request.output)
        return Outcome(usage, hit, written, undecided)

    def sweep(self, now: float) -> None:
        """Drops expired entries, so that memory depends on the live entries and not on the trace."""
        for stores in self._scopes.values():
            for store in stores:
                for cum in [cum for cum, entry in store.items() if entry.expires < now]:
                    del store[cum]
        self._scopes = {key: stores for key, stores in self._scopes.items() if stores[0] or stores[1]}
        self._writes = 0
        self._sweep_at = SWEEP_EVERY + len(self)

    def _lookup(
        self, markers: Sequence[Marker], fives: Store, hours: Store, now: float, batch: str
    ) -> tuple[Node | None, Entry | None]:
        """The longest live entry within the lookback of any marker (R8-R10)."""
        hit: Node | None = None
        found: Entry | None = None
        for node, ttl in reversed(markers):
            if hit is not None and node.index <= hit.index:
                break
            stores = (fives, hours) if self._plain else (fives,) if ttl == 300 else (hours,)
            candidate, entry = self._walk(node, stores, now, batch)
            if candidate is not None and (hit is None or candidate.index > hit.index):
                hit, found = candidate, entry
                if self._plain:
                    break
        return hit, found

    def _walk(
        self, node: Node, stores: tuple[Store, ...], now: float, batch: str
    ) -> tuple[Node | None, Entry | None]:
        left = self.lookback
        while True:
            for store in stores:
                entry = store.get(node.cum)
                if entry is None or entry.expires < now or entry.visible > now:
                    continue
                # items of one batch run at the same time
                if not batch or entry.batch != batch:
                    return node, entry
            before = node.parent
            if before is None or not before.index:
                return None, None
            if self.consumes(node, before):
                left -= 1
                if not left:
                    return None, None
            node = before

    def consumes(self, node: Node, before: Node) -> bool:
        """Whether the step from a block to the previous one consumes a lookback position (R8, R9, U5)."""
        kind = before.kind
        if self._collapse and kind == node.kind and kind in _RUNS:
            return False
        return not (self._conversation and (before.tier < MESSAGES or kind == THINKING))

    def _refresh(
        self, hit: Node, entry: Entry, markers: Sequence[Marker], now: float, fives: Store, hours: Store
    ) -> None:
        """Restarts the TTL at the start of the request that reads (R13, R14); which entries it reaches is U3."""
        for store, ttl in ((fives, 300), (hours, 3600)):
            held = store.get(hit.cum)
            # with separate TTL classes, only the class that was read is refreshed
            if held is not None and held.expires >= now and (self._plain or held is entry):
                held.expires = max(held.expires, now + ttl)
        if self.assumptions.refresh == "prefixes":
            node = hit.parent
            while node is not None and node.index:
                self._renew(node, ((fives, 300), (hours, 3600)), now)
                node = node.parent
        elif self.assumptions.refresh == "markers":
            for node, ttl in markers:
                if node.index < hit.index:
                    classes = ((fives, 300), (hours, 3600))
                    self._renew(node, [(s, t) for s, t in classes if self._plain or t == ttl], now)

    def _renew(self, node: Node, classes: Sequence[tuple[Store, int]], now: float) -> None:
        for store, ttl in classes:
            held = store.get(node.cum)
            if held is not None and held.visible <= now <= held.expires:
                held.expires = max(held.expires, now + ttl)

    def _write(self, store: Store, cum: int, now: float, expires: float, visible: float, batch: str) -> None:
        held = store.get(cum)
        if held is not None and held.expires >= now:
            # a parallel request writes the same prefix: it is readable once the first response begins
            held.expires = max(held.expires, expires)
            held.visible = min(held.visible, visible)
            if held.batch != batch:
                held.batch = ""
        else:
            store[cum] = Entry(expires, visible, batch)

    def _lost(self, request: Request) -> bool:
        return zlib.crc32(f"{request.workspace}/{request.id}".encode()) < self.assumptions.lost_reads * 2**32


def batch_of(request: Request) -> str:
    """Name of the batch that a request is an item of, "" for none; items without an id count as one batch."""
    return (request.batch_id or UNNAMED_BATCH) if request.batch else ""


def _with_server_tools(head: Node, markers: Sequence[Marker]) -> list[Marker]:
    """Adds the 5m breakpoint that the API sets on every server-tool result of a marked request (R7)."""
    marked = {node.index for node, _ in markers}
    merged = list(markers)
    node = head.server
    while node is not None:
        if node.index not in marked:
            merged.append((node, 300))
        node = node.parent.server if node.parent is not None else None
    return sorted(merged, key=lambda marker: marker[0].index)
