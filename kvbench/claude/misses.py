"""Cache misses: why a prefix that could have been read was not, and what reading it would have saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import HOUR, Placement
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import KINDS, TIERS, TTL_NAMES, Marker, Node, Request, Usage
from kvbench.claude.rules import Cache, Outcome, marker_error
from kvbench.claude.simulate import Trace, simulate

# reason -> suggested fix
FIXES = {
    "no cache_control": "send cache_control",
    "below the minimum": "join the system prompt with other stable text, or use a model with a lower minimum",
    "expired": "mark with ttl 1h, or send requests closer together",
    "first response not begun": "wait for the first response to begin before sending the others",
    "lookback exceeded": "put a second marker where an earlier request wrote, within 20 positions",
    "other lifetime": "keep one ttl per place (switch U2)",
    "lost under load": "none (switch U7)",
    "prefix changed": "move what changes behind what does not",
    "parameter changed": "keep tool_choice, thinking, effort, images and betas the same",
    "marker on a block that changes every turn": "put the marker before the changing block",
    "shared part not marked": "put a marker where the shared part ends",
    "other model": "keep to one model within a conversation",
    "other workspace": "send the requests from one workspace",
    "too many breakpoints": "drop breakpoints until 4 are left",
    "wrong TTL order": "put 1h breakpoints before 5m ones",
}


@dataclass(frozen=True)
class Finding:
    """One miss.

    Attributes:
        request: id of the request.
        reason: a key of FIXES.
        detail: the numbers behind it.
        tokens: tokens shared with an earlier request that were not read.
        at_most: upper limit of the saving on this request alone, nano-dollars.
    """

    request: str
    reason: str
    detail: str
    tokens: int
    at_most: int


@dataclass
class Diagnosis:
    """All misses of a trace under a placement.

    Attributes:
        requests: number of requests.
        cost: input cost in nano-dollars.
        findings: one per miss.
        net: saving per fix when the whole trace is replayed with it, nano-dollars (negative: it costs more).
    """

    requests: int = 0
    cost: int = 0
    findings: list[Finding] = field(default_factory=list)
    net: dict[str, int] = field(default_factory=dict)

    def reasons(self) -> dict[str, tuple[int, int]]:
        """Number of misses and upper limit of the saving in nano-dollars, by reason, most expensive first."""
        count, money = Counter[str](), Counter[str]()
        for finding in self.findings:
            count[finding.reason] += 1
            money[finding.reason] += finding.at_most
        return {reason: (count[reason], money[reason]) for reason, _ in money.most_common()}


def diagnose(
    trace: Trace,
    placement: Placement,
    prices: PriceBook,
    assumptions: Assumptions | None = None,
    alternatives: dict[str, Placement] | None = None,
) -> Diagnosis:
    """Explains every miss of a trace.

    Args:
        trace: the trace; the hashes of all blocks are held in memory.
        placement: where the markers are.
        prices: the price book.
        assumptions: assumptions on undocumented points.
        alternatives: further placements whose net saving to report; the same places with 1h are always included.
    """
    assumptions = assumptions or Assumptions()
    finder = _MissFinder(placement, prices, assumptions)
    finder.run(trace.requests(assumptions))
    found = finder.result
    others = {"the same places with ttl 1h": with_ttl(placement, HOUR), **(alternatives or {})}
    legal = {name: _or_none(place) for name, place in others.items()}
    for name, totals in simulate(trace.requests(assumptions), legal, prices, assumptions).items():
        found.net[name] = found.cost - totals.input_cost
    return found


def with_ttl(placement: Placement, ttl: int) -> Placement:
    """The same places with a different TTL."""
    return lambda request: tuple((node, ttl) for node, _ in placement(request))


def _or_none(placement: Placement) -> Placement:
    """The placement without markers on requests that the API would reject."""
    return lambda request: () if marker_error(placement(request)) else placement(request)


@dataclass(slots=True)
class _Written:
    """The last entry written at a prefix, kept after it expires."""

    ttl: int
    used: float
    visible: float


class _MissFinder:
    def __init__(self, placement: Placement, prices: PriceBook, assumptions: Assumptions) -> None:
        self.placement = placement
        self.prices = prices
        self.assumptions = assumptions
        self.cache = Cache(assumptions)
        self.result = Diagnosis()
        self._seen: dict[tuple[str, str], set[int]] = {}
        self._written: dict[tuple[str, str], dict[int, _Written]] = {}
        self._last: dict[str, tuple[Request, Sequence[Marker]]] = {}
        self._changing: Counter[tuple[str, int]] = Counter()

    def run(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._check(request)

    def _check(self, request: Request) -> None:
        scope = (request.workspace, request.model)
        seen = self._seen.setdefault(scope, set())
        written = self._written.setdefault(scope, {})
        markers = self.placement(request)
        wrong = marker_error(markers)
        minimum = self.prices.minimum(request.model, request.t, self.assumptions.unknown_minimum)
        outcome = self.cache.serve(request, () if wrong else markers, minimum)
        cost = self._cost(request, outcome.usage)
        self.result.requests += 1
        self.result.cost += cost
        shared = _deepest(request.head, seen)
        missed = (shared.tokens if shared is not None else 0) - outcome.usage.read
        if wrong:
            reason = "wrong TTL order" if "1h" in wrong else "too many breakpoints"
            self._add(
                request, reason, wrong, max(missed, 0), self._saving(request, outcome.usage, shared, cost)
            )
        elif shared is None:
            self._check_other_scopes(request, minimum)
        elif missed > 0 and shared is not outcome.hit:
            reason, detail = self._reason(request, markers, outcome, shared, minimum, written)
            self._add(request, reason, detail, missed, self._saving(request, outcome.usage, shared, cost))
        self._remember(request, markers, outcome, seen, written)

    def _add(self, request: Request, reason: str, detail: str, tokens: int, saving: int) -> None:
        self.result.findings.append(Finding(request.id, reason, detail, tokens, saving))

    def _cost(self, request: Request, usage: Usage) -> int:
        return self.prices.cost(request, usage, unverified=self.assumptions.unverified_prices)[0]

    def _saving(self, request: Request, usage: Usage, shared: Node | None, cost: int) -> int:
        """Saving on this request if everything up to the shared block had been read."""
        start = max(usage.read, shared.tokens if shared is not None else 0)
        hour_end = max(usage.read + usage.write_1h, start)
        end = max(usage.read + usage.write_1h + usage.write_5m, hour_end)
        fixed = Usage(start, end - hour_end, hour_end - start, usage.total - end)
        return max(0, cost - self._cost(request, fixed))

    def _reason(
        self,
        request: Request,
        markers: Sequence[Marker],
        outcome: Outcome,
        shared: Node,
        minimum: int,
        written: dict[int, _Written],
    ) -> tuple[str, str]:
        if not markers:
            return "no cache_control", f"{shared.tokens} tokens were sent before"
        if all(node.tokens < minimum for node, _ in markers) or shared.tokens < minimum:
            tokens = min(markers[-1][0].tokens, shared.tokens)
            return "below the minimum", f"{tokens} tokens of {minimum} (short by {minimum - tokens})"
        floor = outcome.hit.index if outcome.hit is not None else 0
        node: Node | None = shared
        while node is not None and node.index > floor:
            entry = written.get(node.cum)
            if entry is not None:
                return self._entry(request, markers, node, entry)
            node = node.parent
        return self._never_written(request, markers, shared)

    def _entry(
        self, request: Request, markers: Sequence[Marker], node: Node, entry: _Written
    ) -> tuple[str, str]:
        age, name = request.t - entry.used, TTL_NAMES[entry.ttl]
        if age > entry.ttl:
            return "expired", f"the {name} entry at block {node.index} expired {age - entry.ttl:g} s before"
        if entry.visible > request.t:
            wait = entry.visible - request.t
            return "first response not begun", f"the response that writes it began {wait:g} s later"
        after = [(marked, ttl) for marked, ttl in markers if marked.index >= node.index]
        if after:
            steps = self._positions(after[0][0], node)
            if steps >= self.cache.lookback:
                return (
                    "lookback exceeded",
                    f"the entry at block {node.index} is {steps} positions before the marker",
                )
            if self.assumptions.ttl_lookup == "matched" and all(ttl != entry.ttl for _, ttl in after):
                return "other lifetime", f"the entry at block {node.index} is {name}"
            return "lost under load", f"the entry at block {node.index} was not found"
        return "shared part not marked", f"the entry at block {node.index} lies behind every marker"

    def _positions(self, node: Node, target: Node) -> int:
        """Lookback positions consumed from a block back to another."""
        steps = 0
        while node.index > target.index and node.parent is not None:
            steps += self.cache.consumes(node, node.parent)
            node = node.parent
        return steps

    def _never_written(self, request: Request, markers: Sequence[Marker], shared: Node) -> tuple[str, str]:
        last = self._last.get(request.session)
        block = _at(request.head, shared.index + 1)
        if last is None or block is None or not any(node.index > shared.index for node, _ in last[1]):
            return "shared part not marked", f"no marker at or after block {shared.index} wrote it"
        other = _at(last[0].head, shared.index + 1)
        where = f"block {block.index} ({TIERS[block.tier]}, {KINDS[block.kind]})"
        if other is not None and block.block_hash and other.block_hash == block.block_hash:
            return "parameter changed", f"{where} is the same, a parameter of {TIERS[block.tier]} is not"
        if any(node.index == block.index for node, _ in markers) and any(
            node.index == block.index for node, _ in last[1]
        ):
            self._changing[request.session, block.index] += 1
            if self._changing[request.session, block.index] > 1:
                return "marker on a block that changes every turn", f"{where} is marked"
        return "prefix changed", f"at {where}"

    def _check_other_scopes(self, request: Request, minimum: int) -> None:
        """Reports a prompt that is new to this workspace and model but known to another one."""
        for (workspace, model), seen in self._seen.items():
            shared = _deepest(request.head, seen)
            if shared is not None and shared.tokens >= minimum:
                same_model = model == request.model
                reason = "other workspace" if same_model else "other model"
                detail = f"{shared.tokens} tokens are cached for {workspace if same_model else model}"
                usage = Usage(uncached=request.head.tokens + request.tail)
                saving = self._saving(request, usage, shared, self._cost(request, usage))
                self._add(request, reason, detail, shared.tokens, saving)
                return

    def _remember(
        self,
        request: Request,
        markers: Sequence[Marker],
        outcome: Outcome,
        seen: set[int],
        written: dict[int, _Written],
    ) -> None:
        node: Node | None = request.head
        while node is not None and node.index and node.cum not in seen:
            seen.add(node.cum)
            node = node.parent
        if outcome.hit is not None and outcome.hit.cum in written:
            written[outcome.hit.cum].used = request.t
        for marked, ttl in outcome.written:
            held = written.get(marked.cum)
            visible = request.t + request.ttft
            if held is not None and held.used + held.ttl >= request.t:
                visible = min(visible, held.visible)
            written[marked.cum] = _Written(ttl, request.t, visible)
        self._last[request.session] = (request, markers)


def _deepest(head: Node, seen: set[int]) -> Node | None:
    """The last block of the longest prefix shared with an earlier prompt."""
    node: Node | None = head
    while node is not None and node.index:
        if node.cum in seen:
            return node
        node = node.parent
    return None


def _at(head: Node, index: int) -> Node | None:
    node: Node | None = head
    while node is not None and node.index > index:
        node = node.parent
    return node if node is not None and node.index == index else None
