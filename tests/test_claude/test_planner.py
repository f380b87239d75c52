"""The planner finds what brute force finds, and nothing goes below the bound."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.bound import lower_bound
from kvbench.claude.placements import none, registry
from kvbench.claude.planner import plan
from kvbench.claude.prices import PriceBook
from kvbench.claude.request import (
    MESSAGES,
    SYSTEM,
    TEXT,
    TOOL_RESULT,
    TOOLS,
    ContentBlock,
    Hashing,
    Request,
    append,
    root,
)
from kvbench.claude.rules import Cache
from kvbench.claude.simulate import simulate

BOOK = PriceBook.load()
BASE = Assumptions()


def make(steps, model="claude-sonnet-4-6"):
    """Requests from (gap, keep, blocks, tokens): each keeps a part of the previous prompt and adds blocks."""
    requests, t, fresh = [], 1.79e9, 100
    tools = append(root(), ContentBlock(TOOLS, 1, 1, 1200), Hashing(), (0, 0, 0))
    system = append(tools, ContentBlock(SYSTEM, TEXT, 2, 900), Hashing(), (0, 0, 0))
    nodes = [system]
    for number, (gap, keep, blocks, tokens) in enumerate(steps):
        t += gap
        nodes = nodes[: max(1, len(nodes) - keep)]
        for _ in range(blocks):
            fresh += 1
            kind = TOOL_RESULT if fresh % 3 == 0 else TEXT
            block = ContentBlock(MESSAGES, kind, fresh, tokens, message=2 * number)
            nodes = [*nodes, append(nodes[-1], block, Hashing(), (0, 0, 0))]
        requests.append(
            Request(f"q{number}", t, model, nodes[-1], tools, system, ttft=2.0, output=10, source="usage")
        )
    return requests


STEPS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 30, 299, 301, 900, 3599, 3700]),
        st.integers(0, 3),
        st.integers(1, 4),
        st.sampled_from([50, 400, 3000]),
    ),
    min_size=1,
    max_size=7,
)


def exhaustive(requests):
    """The cheapest cost over every legal marker set on tools, system and the heads of all requests."""
    minimum = BOOK.minimum(requests[0].model, requests[0].t)

    def sets(request):
        nodes, node = [], request.head
        while node.index:
            nodes.insert(0, node)
            node = node.parent
        for size in range(min(4, len(nodes)) + 1):
            for chosen in itertools.combinations(nodes, size):
                for hours in range(size + 1):
                    yield tuple((node, 3600 if k < hours else 300) for k, node in enumerate(chosen))

    frontier = [(0, Cache())]
    for request in requests:
        following = {}
        for cost, cache in frontier:
            for markers in sets(request):
                copy = cache.copy()
                paid = cost + BOOK.cost(request, copy.serve(request, markers, minimum).usage)[0]
                state = tuple(
                    tuple(sorted((cum, entry.expires, entry.visible) for cum, entry in store.items()))
                    for store in copy.scope(request)
                )
                if state not in following or following[state][0] > paid:
                    following[state] = (paid, copy)
        frontier = list(following.values())
    return min(cost for cost, _ in frontier)


@pytest.mark.parametrize(
    "steps",
    [
        [(0, 0, 1, 3000), (1, 0, 1, 3000)],
        [(0, 0, 1, 3000), (301, 1, 1, 400)],
        [(0, 0, 1, 400), (299, 0, 1, 400), (3599, 0, 0, 0)],
        [(0, 0, 1, 400), (1, 0, 0, 0), (301, 1, 1, 3000)],
    ],
)
def test_equals_brute_force_on_small_traces(steps):
    requests = make(steps)
    found = plan(requests, BOOK, width=500)
    assert found.exact
    assert found.cost == exhaustive(requests)


@settings(max_examples=12, deadline=None)
@given(STEPS)
def test_bound_plan_and_placements_are_in_order(steps):
    requests = make(steps)
    found = plan(requests, BOOK, width=8)
    costs = {name: totals.input_cost for name, totals in simulate(requests, registry(), BOOK).items()}
    assert lower_bound(requests, BOOK) <= found.cost <= min(costs.values())
    replayed = simulate(requests, {"plan": found.placement}, BOOK)["plan"]
    assert replayed.input_cost == found.cost


@settings(max_examples=15, deadline=None)
@given(STEPS, st.sampled_from([assumptions for _, _, assumptions in Assumptions().flips()]))
def test_no_placement_undercuts_the_bound_under_any_assumption(steps, assumptions):
    requests = make(steps)
    bound = lower_bound(requests, BOOK, assumptions)
    for totals in simulate(requests, registry(), BOOK, assumptions).values():
        assert bound <= totals.input_cost


@settings(max_examples=40, deadline=None)
@given(STEPS, st.sampled_from(sorted(registry())))
def test_tokens_add_up_and_markers_never_change_them(steps, name):
    requests = make(steps)
    marked = simulate(requests, {name: registry()[name], "none": none}, BOOK)
    totals = marked[name]
    assert totals.read + totals.write_5m + totals.write_1h + totals.uncached == totals.total
    assert totals.total == marked["none"].total == sum(request.head.tokens for request in requests)


def test_a_marker_before_a_long_gap_keeps_the_prefix_cheaply():
    """Only new tokens are billed (R17), so 1h on the tail alone carries the whole prefix over the gap."""
    requests = make([(0, 0, 2, 9000), (60, 0, 1, 100), (900, 0, 1, 100)])
    found = plan(requests, BOOK)
    assert [ttl for _, ttl in found.markers["q0"]][-1] == 300
    assert found.markers["q1"][-1][1] == 3600
    assert found.cost < min(totals.input_cost for totals in simulate(requests, registry(), BOOK).values())


@pytest.mark.parametrize("gap", [10, 400])
def test_one_off_prompts_are_not_cached(gap):
    requests = make([(0, 0, 1, 500)])
    assert plan(requests, BOOK).cost == simulate(requests, {"none": none}, BOOK)["none"].input_cost
    assert lower_bound(requests, BOOK) <= plan(requests, BOOK).cost
