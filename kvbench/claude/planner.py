"""The cheapest legal placement for a given trace, by dynamic programming over the state of the cache.

Workspaces and models do not share a cache, so each is planned separately. A step serves one request; a state is the
set of live entries that a later request could use, and its value is the lowest cost of reaching it. A state is dropped
if a cheaper one holds the same entries at least as long.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import FIVE, HOUR, Placement, registry
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import Marker, Node, Request, last_markable
from kvbench.claude.rules import MAX_MARKERS, Cache

NEIGHBOURS = 3  # requests before and after whose shared prefix is a candidate for a marker


@dataclass
class Plan:
    """A planned placement.

    Attributes:
        markers: markers by request id.
        cost: input cost in nano-dollars.
        exact: the beam width dropped no state, so no choice among the considered places is cheaper.
    """

    markers: dict[str, tuple[Marker, ...]] = field(default_factory=dict)
    cost: int = 0
    exact: bool = True

    def placement(self, request: Request) -> tuple[Marker, ...]:
        """The plan as a placement."""
        return self.markers[request.id]


@dataclass(slots=True)
class _State:
    cost: int
    cache: Cache
    chosen: tuple[Marker, ...] = ()
    before: _State | None = None


def plan(
    requests: Iterable[Request],
    prices: PriceBook,
    assumptions: Assumptions | None = None,
    *,
    width: int = 24,
    fixed: Mapping[str, Placement] | None = None,
) -> Plan:
    """Plans the markers of every request with knowledge of all later requests.

    Args:
        requests: the trace, ordered by start time; held in memory, ids must be unique.
        prices: the price book.
        assumptions: assumptions on undocumented points.
        width: beam width, the states kept per request.
        fixed: placements to try as well; the plan never costs more than any of them.
    """
    assumptions = assumptions or Assumptions()
    others = registry() if fixed is None else fixed
    scopes: dict[tuple[str, str], list[Request]] = {}
    for request in requests:
        scopes.setdefault((request.workspace, request.model), []).append(request)
    result = Plan()
    for members in scopes.values():
        best, exact = _search(members, prices, assumptions, width, list(others.values()))
        candidates = [best, *(_replay(members, prices, assumptions, place) for place in others.values())]
        cost, chosen = min(candidates, key=lambda candidate: candidate[0])
        result.cost += cost
        result.exact = result.exact and exact
        result.markers.update(zip((request.id for request in members), chosen, strict=True))
    return result


_Solution = tuple[int, list[tuple[Marker, ...]]]


def _search(
    requests: Sequence[Request],
    prices: PriceBook,
    assumptions: Assumptions,
    width: int,
    fixed: Sequence[Placement],
) -> tuple[_Solution, bool]:
    paths = [_path(request.head) for request in requests]
    last_use = {cum: index for index, path in enumerate(paths) for cum in path}
    states = [_State(0, Cache(assumptions))]
    exact = True
    for index, request in enumerate(requests):
        minimum = prices.minimum(request.model, request.t, assumptions.unknown_minimum)
        places = _places(index, requests, paths, minimum)
        seeds = [place(request) for place in fixed]
        following: list[_State] = []
        for state in states:
            for markers in dict.fromkeys([*_actions(state.cache, request, paths[index], places), *seeds]):
                cache = state.cache.copy()
                usage = cache.serve(request, markers, minimum).usage
                cost = prices.cost(request, usage, unverified=assumptions.unverified_prices)[0]
                _forget(cache, request, lambda cum, now=index: last_use.get(cum, -1) > now)
                following.append(_State(state.cost + cost, cache, markers, state))
        kept = _undominated(following, request)
        if len(kept) > width and index + 1 < len(requests):
            exact = False
            kept = _promising(kept, requests[index + 1], paths[index + 1], prices)[:width]
        states = kept
    best = min(states, key=lambda state: state.cost)
    chosen, state = [], best
    while state.before is not None:
        chosen.append(state.chosen)
        state = state.before
    return (best.cost, chosen[::-1]), exact


def _replay(
    requests: Sequence[Request], prices: PriceBook, assumptions: Assumptions, placement: Placement
) -> _Solution:
    cache, cost, chosen = Cache(assumptions), 0, []
    for request in requests:
        markers = placement(request)
        minimum = prices.minimum(request.model, request.t, assumptions.unknown_minimum)
        usage = cache.serve(request, markers, minimum).usage
        cost += prices.cost(request, usage, unverified=assumptions.unverified_prices)[0]
        chosen.append(markers)
    return cost, chosen


def _path(head: Node) -> dict[int, Node]:
    """Every block of a prompt by its cumulative hash."""
    path: dict[int, Node] = {}
    node: Node | None = head
    while node is not None and node.index:
        path[node.cum] = node
        node = node.parent
    return path


def _places(
    index: int, requests: Sequence[Request], paths: Sequence[Mapping[int, Node]], minimum: int
) -> list[Node]:
    """Candidate blocks: the ends of the tiers, of the prompt, and of prefixes shared with neighbouring requests."""
    request = requests[index]
    found = [request.tools_end, request.system_end, request.head]
    for other in range(max(0, index - NEIGHBOURS), min(len(requests), index + NEIGHBOURS + 1)):
        if other != index:
            found.append(_shared(requests[index].head, paths[other]))
    nodes = {node.index: node for node in map(last_markable, found) if node is not None}
    return [nodes[key] for key in sorted(nodes) if nodes[key].tokens >= minimum]


def _shared(head: Node, path: Mapping[int, Node]) -> Node | None:
    node: Node | None = head
    while node is not None and node.cum not in path:
        node = node.parent
    return node


def _actions(
    cache: Cache, request: Request, path: Mapping[int, Node], places: Sequence[Node]
) -> Iterator[tuple[Marker, ...]]:
    """Marker sets with distinct effects: what to write beyond the longest live entry, and how to find it."""
    held, lifetime = _longest(cache, request, path)
    beyond = [node for node in places if held is None or node.index > held.index]
    room = MAX_MARKERS - (held is not None)
    for size in range(min(room, len(beyond)) + 1):
        for nodes in itertools.combinations(beyond, size):
            for hours in range(size + 1):
                written = tuple((node, HOUR if k < hours else FIVE) for k, node in enumerate(nodes))
                if held is None:
                    yield written
                else:
                    # a marker on the entry itself finds it regardless of the lookback; 5m must not precede 1h
                    yield ((held, HOUR if hours else lifetime), *written)
    yield ()


def _longest(cache: Cache, request: Request, path: Mapping[int, Node]) -> tuple[Node | None, int]:
    """The longest prefix that a request can read, and the lifetime of its entry."""
    best: Node | None = None
    lifetime = FIVE
    for store, ttl in zip(cache.scope(request), (FIVE, HOUR), strict=True):
        for cum, entry in store.items():
            node = path.get(cum)
            if node is None or not node.markable or not entry.visible <= request.t <= entry.expires:
                continue
            if best is None or node.index > best.index:
                best, lifetime = node, ttl
    return best, lifetime


def _forget(cache: Cache, request: Request, used: Callable[[int], bool]) -> None:
    """Drops entries that have expired or that no later request contains."""
    for store in cache.scope(request):
        for cum in [cum for cum, entry in store.items() if entry.expires < request.t or not used(cum)]:
            del store[cum]


def _undominated(states: list[_State], request: Request) -> list[_State]:
    kept: list[_State] = []
    for state in sorted(states, key=lambda state: state.cost):
        if not any(_covers(other.cache, state.cache, request) for other in kept):
            kept.append(state)
    return kept


def _promising(
    states: list[_State], request: Request, path: Mapping[int, Node], prices: PriceBook
) -> list[_State]:
    """States ordered by cost so far minus the saving on the next request."""
    rates = prices.rates(request.model, request.t, request.head.tokens)

    def rank(state: _State) -> int:
        held, _ = _longest(state.cache, request, path)
        return state.cost - (rates.write_5m - rates.read) * (held.tokens if held is not None else 0)

    return sorted(states, key=rank)


def _covers(one: Cache, other: Cache, request: Request) -> bool:
    """Whether one cache holds every entry of the other, readable as early and as long."""
    for ours, theirs in zip(one.scope(request), other.scope(request), strict=True):
        for cum, entry in theirs.items():
            held = ours.get(cum)
            if held is None or held.expires < entry.expires or held.visible > entry.visible:
                return False
    return True
