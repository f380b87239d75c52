"""Cache misses: why what was sent before was not read, and what reading it would have saved.

The measure is a perfect cache, which reads every block that an earlier request of the same workspace sent, wherever it
stands: no minimum, no lifetime, no lookback, no prefix. What a request pays more than that is divided among causes, so
that the causes of a trace add up to the whole difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.changes import Change, common_blocks, first_change, path
from kvbench.claude.diagnosis import Diagnosis, Finding
from kvbench.claude.edited import Edited, EditedBlocks
from kvbench.claude.placements import HOUR, Placement, as_sent
from kvbench.claude.prices import PriceBook
from kvbench.claude.repeats import Unit, also_sent, missed_units, with_read
from kvbench.claude.request import TTL_NAMES, Marker, Node, Request, Usage
from kvbench.claude.rules import Cache, Outcome, batch_of, marker_error
from kvbench.claude.simulate import Trace, simulate


def diagnose(
    trace: Trace,
    placement: Placement,
    prices: PriceBook,
    assumptions: Assumptions | None = None,
    alternatives: Mapping[str, Placement] | None = None,
) -> Diagnosis:
    """Explains every miss of a trace.

    Args:
        trace: the trace; the hashes of all blocks are held in memory.
        placement: where the markers are. With `as_sent`, requests with recorded usage are explained as billed.
        prices: the price book.
        assumptions: assumptions on undocumented points.
        alternatives: further placements whose net saving to report; the same places with 1h are always included.
    """
    assumptions = assumptions or Assumptions()
    finder = _Finder(placement, prices, assumptions)
    finder.run(trace.requests(assumptions))
    others = {"the same places with ttl 1h": with_ttl(placement, HOUR), **(alternatives or {})}
    legal = {name: _or_none(place) for name, place in others.items()}
    for name, totals in simulate(trace.requests(assumptions), legal, prices, assumptions).items():
        finder.result.net[name] = finder.modelled - totals.input_cost
    return finder.result


def with_ttl(placement: Placement, ttl: int) -> Placement:
    """The same places with a different TTL."""
    return lambda request: tuple((node, ttl) for node, _ in placement(request))


def _or_none(placement: Placement) -> Placement:
    """The placement without markers on requests that the API would reject."""
    return lambda request: () if marker_error(placement(request)) else placement(request)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry on the path of a request, as it was when the request came."""

    node: Node
    ttl: int
    expires: float
    visible: float
    batch: str


@dataclass(frozen=True, slots=True)
class _Served:
    """A request and the markers that could write."""

    request: Request
    usable: Sequence[Marker]


@dataclass(slots=True)
class _Why:
    """Cause, place, detail, first block behind the change (0: nothing changed), compared request, API's word."""

    cause: str
    place: str = ""
    detail: str = ""
    behind: int = -1
    compared: str = ""
    api: str = ""


class _Finder:
    def __init__(self, placement: Placement, prices: PriceBook, assumptions: Assumptions) -> None:
        self.placement = placement
        self.prices = prices
        self.assumptions = assumptions
        self.cache = Cache(assumptions)
        self.cache.keep_expired()
        self.result = Diagnosis()
        self.modelled = 0
        self._served: list[_Served] = []
        self._seen: dict[
            tuple[str, str], dict[int, int]
        ] = {}  # prefix -> last request, by workspace and model
        self._sent: dict[str, dict[int, int]] = {}  # content -> last request, by workspace
        self._last: dict[tuple[str, str], int] = {}  # last request of a session
        self._edited: dict[tuple[str, str], EditedBlocks] = {}  # by workspace and model
        self._changing: Counter[tuple[str, int]] = Counter()

    def run(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._check(request)

    def _check(self, request: Request) -> None:
        nodes = path(request.head)
        seen = self._seen.setdefault((request.workspace, request.model), {})
        sent = self._sent.setdefault(request.workspace, {})
        markers = self.placement(request)
        wrong = marker_error(markers)
        minimum = self.prices.minimum(request.model, request.t, self.assumptions.unknown_minimum)
        usable = self.cache.effective(request, () if wrong else markers, minimum)[0]
        entries = self._entries(request, nodes)
        outcome = self.cache.serve(request, () if wrong else markers, minimum)
        self.modelled += self._cost(request, outcome.usage)
        billed = self.placement is as_sent and request.usage is not None
        usage = request.usage if billed and request.usage is not None else outcome.usage
        missed = missed_units(nodes, usage.read, sent)
        shared = next((node for node in reversed(nodes) if node.cum in seen), None)
        split: dict[str, tuple[_Why, list[Unit]]] = {}
        if wrong:
            split[wrong] = (_rejected(wrong), [])
        if missed:
            case = _Case(request, markers, usable, outcome, shared, minimum, entries, wrong, nodes)
            for why, units in self._divide(case, missed, seen, sent):
                key = wrong if why.detail == wrong else f"{why.cause}/{why.place}/{why.compared}"
                split.setdefault(key, (why, []))[1].extend(units)
        elif shared is None:
            self._check_other_workspaces(request, nodes, minimum)
        edited = None
        if not wrong and nodes[-1].tokens >= minimum:
            held = self._edited.setdefault((request.workspace, request.model), EditedBlocks())
            number = self._last.get((request.workspace, request.session))
            previous = None if number is None else self._served[number].request
            edited = held.find(request, nodes, shared.index if shared is not None else 0, previous)
            held.remember(request, nodes)
        self._settle(request, usage, list(split.values()), edited)
        self._remember(request, nodes, usable, seen, sent)

    def _settle(
        self, request: Request, usage: Usage, split: list[tuple[_Why, list[Unit]]], edited: Edited | None
    ) -> None:
        """Prices the causes one after another, so that they add up to the whole difference."""
        if edited is not None and edited.end <= usage.read:
            edited = None
        if edited is not None and all(why.place != edited.change.place for why, _ in split):
            change = edited.change
            why = _Why(change.reason, change.place, change.detail, edited.end, edited.other.id, change.api)
            split = [*split, (why, [])]
        now, cost = usage, self._cost(request, usage)
        self.result.requests += 1
        self.result.cost += cost
        total = request.head.tokens + request.tail
        for why, units in split:
            fixed = with_read(now, usage, units)
            after = self._cost(request, fixed)
            within = within_cost = 0
            if edited is not None and edited.same and why.place == edited.change.place:
                block = Unit(0, max(edited.start, usage.read), edited.end, edited.change.index + 1)
                within = block.end - block.start
                within_cost = after - self._cost(request, with_read(fixed, usage, [block]))
            behind = max(0, total - max(why.behind, usage.read)) if why.behind >= 0 else 0
            self.result.findings.append(
                Finding(
                    request.id,
                    why.cause,
                    why.place,
                    why.detail,
                    fixed.read - now.read,
                    cost - after,
                    len(units),
                    behind,
                    within,
                    within_cost,
                    why.compared,
                    request.api_reason,
                    _agrees(why.api, request.api_reason),
                )
            )
            now, cost = fixed, after
        self.result.perfect += cost

    def _cost(self, request: Request, usage: Usage) -> int:
        return self.prices.cost(request, usage, unverified=self.assumptions.unverified_prices)[0]

    def _entries(self, request: Request, nodes: Sequence[Node]) -> list[_Entry]:
        """Entries ever written on the path of a request, in order; of two at a block, the one that lives longer."""
        found = []
        fives, hours = self.cache.scope(request)
        for node in nodes:
            held = [
                _Entry(node, ttl, entry.expires, entry.visible, entry.batch)
                for store, ttl in ((fives, 300), (hours, 3600))
                if (entry := store.get(node.cum)) is not None
            ]
            if held:
                found.append(max(held, key=lambda entry: entry.expires))
        return found

    def _divide(
        self, case: _Case, missed: Sequence[Unit], seen: Mapping[int, int], sent: Mapping[int, int]
    ) -> Iterable[tuple[_Why, list[Unit]]]:
        """Every missed block with its cause, from the start of the prompt to its end."""
        hit = case.outcome.hit.index if case.outcome.hit is not None else 0
        deepest = case.shared.index if case.shared is not None else 0
        lost = [unit for unit in missed if unit.index <= hit]
        if lost:
            yield self._not_read(case), lost
        prefix = [unit for unit in missed if hit < unit.index <= deepest]
        if prefix:
            yield from self._prefix(case, prefix, hit, seen)
        rest = [unit for unit in missed if unit.index > max(hit, deepest)]
        if rest:
            yield from self._behind(case, rest, sent)

    def _not_read(self, case: _Case) -> _Why:
        """Blocks that the rules say were read: rounding, or the bill says otherwise."""
        assert case.outcome.hit is not None
        node = case.outcome.hit
        if case.request.usage is None or self.placement is not as_sent:
            return _Why("rounded down", detail=f"to a multiple of {self.assumptions.granularity}")
        entry = next((entry for entry in case.entries if entry.node is node), None)
        left = f" for {entry.expires - case.request.t:g} s more" if entry is not None else ""
        detail = f"the entry at block {node.index} lives{left}; the bill says it was not read"
        if case.request.api_reason:
            detail += f", the API says {case.request.api_reason}"
        return _Why("billed, not explained", detail=detail)

    def _prefix(
        self, case: _Case, units: Sequence[Unit], hit: int, seen: Mapping[int, int]
    ) -> Iterable[tuple[_Why, list[Unit]]]:
        """Blocks whose whole prefix was sent before: an entry there could have been read."""
        assert case.shared is not None
        if case.wrong:
            yield _rejected(case.wrong), list(units)
            return
        if not case.markers:
            yield (
                _Why("no cache_control", detail=f"{case.shared.tokens} tokens were sent before"),
                list(units),
            )
            return
        entry = next((e for e in reversed(case.entries) if hit < e.node.index <= case.shared.index), None)
        end = entry.node.index if entry is not None and case.usable else 0
        covered = [unit for unit in units if unit.index <= end]
        if covered and entry is not None:
            yield self._entry(case, entry), covered
        beyond = [unit for unit in units if unit.index > end]
        if beyond:
            yield self._never_written(case, seen), beyond

    def _entry(self, case: _Case, entry: _Entry) -> _Why:
        now, node, name = case.request.t, entry.node, TTL_NAMES[entry.ttl]
        if now > entry.expires:
            return _Why(
                "expired",
                detail=f"the {name} entry at block {node.index} expired {now - entry.expires:g} s before",
            )
        if entry.visible > now:
            wait = entry.visible - now
            return _Why(
                "first response not begun", detail=f"the response that writes it began {wait:g} s later"
            )
        if entry.batch and entry.batch == batch_of(case.request):
            return _Why("item of the same batch", detail=f"the entry at block {node.index} is of this batch")
        after = [(marked, ttl) for marked, ttl in case.usable if marked.index >= node.index]
        if not after:
            return _Why(
                "shared part not marked", detail=f"the entry at block {node.index} lies behind every marker"
            )
        steps = self._positions(after[0][0], node)
        if steps >= self.cache.lookback:
            return _Why(
                "lookback exceeded",
                detail=f"the entry at block {node.index} is {steps} positions before the marker",
            )
        if self.assumptions.ttl_lookup == "matched" and all(ttl != entry.ttl for _, ttl in after):
            return _Why("other lifetime", detail=f"the entry at block {node.index} is {name}")
        return _Why("lost under load", detail=f"the entry at block {node.index} was not found")

    def _positions(self, node: Node, target: Node) -> int:
        """Lookback positions consumed from a block back to another."""
        steps = 0
        while node.index > target.index and node.parent is not None:
            steps += self.cache.consumes(node, node.parent)
            node = node.parent
        return steps

    def _never_written(self, case: _Case, seen: Mapping[int, int]) -> _Why:
        """The shared part ends where nothing was written: what changed behind it, else the markers."""
        shared, request = case.shared, case.request
        assert shared is not None
        last = self._served[self._last.get((request.workspace, request.session), seen[shared.cum])]
        if common_blocks(last.request, request) < shared.index:
            last = self._served[seen[shared.cum]]
        short = f"{min(case.markers[-1][0].tokens, shared.tokens)} tokens of {case.minimum}"
        if not case.usable:
            missing = case.minimum - min(case.markers[-1][0].tokens, shared.tokens)
            return _Why("below the minimum", detail=f"{short} (short by {missing})")
        if any(node.index > shared.index for node, _ in last.usable):
            change = first_change(last.request, request)
            if change is not None:
                return self._changed(case, change, last)
        if shared.tokens < case.minimum:
            return _Why("below the minimum", detail=f"{short} (short by {case.minimum - shared.tokens})")
        return _Why("shared part not marked", detail=f"no marker at block {shared.index} wrote it")

    def _changed(self, case: _Case, change: Change, last: _Served) -> _Why:
        """A change that cut off the entry behind it, or a marker that stands on what changes."""
        at = change.index + 1
        marked = all(any(node.index == at for node, _ in markers) for markers in (case.usable, last.usable))
        if change.edited and marked:
            self._changing[case.request.session, at] += 1
            if self._changing[case.request.session, at] > 1:
                return _Why(
                    "marker on a block that changes every turn",
                    change.place,
                    f"{change.detail}; it is marked",
                    compared=last.request.id,
                    api=change.api,
                )
        return _why(change, case, last.request)

    def _behind(
        self, case: _Case, units: Sequence[Unit], sent: Mapping[int, int]
    ) -> Iterable[tuple[_Why, list[Unit]]]:
        """Blocks that were sent before, but behind another prefix: what changed before them."""
        best: tuple[int, int] | None = None
        chosen: list[Unit] = []
        previous = self._last.get((case.request.workspace, case.request.session))
        candidates = [sent[unit.content] for unit in (units[0], units[-1])]
        for number in [*([previous] if previous is not None else []), *sorted(set(candidates), reverse=True)]:
            again = also_sent(units, self._served[number].request, case.request)
            size = sum(unit.end - unit.start for unit in again)
            # the conversation's own previous request comes first, unless another one explains more
            if again and (best is None or size > best[0]):
                best, chosen = (size, number), again
        if best is not None:
            other = self._served[best[1]].request
            change = first_change(other, case.request)
            if change is not None:
                yield _why(change, case, other), chosen
            else:
                chosen = []
        explained = set(chosen)
        left = [unit for unit in units if unit not in explained]
        if left:
            detail = "the same content was sent before at another place"
            yield (
                _Why(
                    "repeated elsewhere",
                    detail=detail,
                    compared=self._served[sent[left[0].content]].request.id,
                ),
                left,
            )

    def _check_other_workspaces(self, request: Request, nodes: Sequence[Node], minimum: int) -> None:
        """Reports a prompt that is new to this workspace but known to another one."""
        for (workspace, model), seen in self._seen.items():
            if workspace == request.workspace or model != request.model:
                continue
            shared = next((node for node in reversed(nodes) if node.cum in seen), None)
            if shared is not None and shared.tokens >= minimum:
                usage = Usage(uncached=request.head.tokens + request.tail)
                fixed = Usage(read=shared.tokens, uncached=usage.total - shared.tokens)
                saving = self._cost(request, usage) - self._cost(request, fixed)
                detail = f"{shared.tokens} tokens were sent in {workspace}"
                self.result.elsewhere.append(
                    Finding(request.id, "other workspace", "", detail, shared.tokens, saving)
                )
                return

    def _remember(
        self,
        request: Request,
        nodes: Sequence[Node],
        usable: Sequence[Marker],
        seen: dict[int, int],
        sent: dict[int, int],
    ) -> None:
        number = len(self._served)
        self._served.append(_Served(request, usable))
        seen.update(dict.fromkeys((node.cum for node in nodes), number))
        for node in nodes:
            sent.update(dict.fromkeys(node.contents, number))
        if request.session:
            self._last[request.workspace, request.session] = number


@dataclass(frozen=True, slots=True)
class _Case:
    """A request with misses: everything that its causes depend on."""

    request: Request
    markers: Sequence[Marker]
    usable: Sequence[Marker]
    outcome: Outcome
    shared: Node | None
    minimum: int
    entries: Sequence[_Entry]
    wrong: str
    nodes: Sequence[Node]


def _rejected(wrong: str) -> _Why:
    """The cause of a request that the API would reject for its markers."""
    return _Why("wrong TTL order" if "1h" in wrong else "too many breakpoints", detail=wrong)


def _agrees(ours: str, theirs: str) -> bool | None:
    """Whether the API names the same part of the request; None if it names nothing that could be compared."""
    if theirs in ("", "previous_message_not_found") or (theirs == "unavailable" and not ours):
        return None
    return ours == theirs


def _why(change: Change, case: _Case, other: Request) -> _Why:
    """The cause of a change; what is behind it starts after an edited block, before anything else."""
    start = change.index + change.edited
    behind = case.nodes[start - 1].tokens if start else 0
    return _Why(change.reason, change.place, change.detail, behind, other.id, change.api)
