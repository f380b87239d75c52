"""What an account says of billed calls: by hand, and against the simulator."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import named
from kvbench.claude.request import Usage
from kvbench.claude.simulate import Simulator
from kvbench.claude.usage.account import Pings, account
from kvbench.claude.usage.call import Call

SONNET = "claude-sonnet-4-6"
DAY = 1_795_514_400.0


def call(name, t, read=0, five=0, hour=0, uncached=0, output=0, **fields):
    values = {"model": SONNET, "session": "s", **fields}
    return Call(id=name, t=DAY + t, usage=Usage(read, five, hour, uncached, output), **values)


def test_an_idle_gap_by_hand(prices):
    """Sonnet 4.6, USD per million tokens: 3 base, 3.75 and 6 written, 0.30 read, 15 output."""
    calls = [
        call("a", 0, five=20_000, uncached=5, output=300),
        call("b", 600, five=21_000, uncached=5),
        call("c", 700, read=21_000, five=1_000),
    ]
    found = account(calls, prices, Pings(240, 3600))
    paid = 42_000 * 3_750 + 10 * 3_000 + 21_000 * 300 + 300 * 15_000
    assert (found.total.paid, found.total.output) == (paid, 300 * 15_000)
    assert found.total.plain == (20_005 + 21_005 + 22_000) * 3_000 + 300 * 15_000
    (loss,) = found.losses
    assert (loss.call.id, loss.cause, loss.gap, loss.tokens) == ("b", "idle gap", 600, 20_000)
    assert loss.cost == 20_000 * (3_750 - 300)
    # b would read 20,000 and write 1,000
    hour = 20_000 * 6_000 + (20_000 * 300 + 1_000 * 6_000) + (21_000 * 300 + 1_000 * 6_000) + 10 * 3_000
    assert found.all_1h == hour + 300 * 15_000
    assert found.all_5m == paid
    pings = found.pings
    assert (pings.sent - pings.sent_after_the_end, pings.sent_after_the_end) == (2, 15)
    assert (pings.kept, pings.saved) == (1, 20_000 * 3_450)
    assert pings.cost == 2 * 20_000 * 300 + 15 * 22_000 * 300


@pytest.mark.parametrize(
    ("after", "cause", "tokens"),
    [
        (call("b", 10, five=21_000, model="claude-opus-5"), "model switch", 20_000),
        (call("b", 10, read=5_000, five=3_000, compacted=True), "compaction", 3_000),
        (call("b", 10, five=21_000), "within its lifetime", 20_000),
        (call("b", 301, read=20_000, five=1_000), None, 0),  # it lived longer than it had to
        (call("b", 4_000, read=1_000, uncached=500), "idle gap", 500),  # the prompt became shorter
        (call("b", 10, five=21_000, session="t"), None, 0),
        (call("b", 10, five=21_000, session=""), None, 0),
    ],
)
def test_causes(prices, after, cause, tokens):
    found = account([call("a", 0, five=20_000), after], prices)
    assert [(loss.cause, loss.tokens) for loss in found.losses] == ([(cause, tokens)] if cause else [])


def test_the_lifetime_is_that_of_the_last_write(prices):
    calls = [call("a", 0, hour=20_000), call("b", 600, read=20_000), call("c", 5_000, hour=20_000)]
    found = account(calls, prices)
    assert [(loss.cause, loss.ttl) for loss in found.losses] == [("idle gap", 3_600)]
    assert found.all_1h == found.total.paid
    # with five minutes b would have written what it read
    assert found.all_5m == 3 * 20_000 * 3_750
    assert found.pings.sent == 0


def test_a_copy_is_counted_once_and_gone_on_from(prices):
    first = call("a", 0, five=20_000)
    copies = [call("a", 0, five=20_000, session="t", copy=True), call("a", 0, five=20_000, copy=True)]
    found = account([first, *copies, call("b", 400, five=20_000, session="t")], prices)
    assert (found.total.calls, found.copies, found.total.paid) == (2, 2, 40_000 * 3_750)
    assert [(loss.call.id, loss.cause) for loss in found.losses] == [("b", "idle gap")]


def test_server_tools_and_terms_are_priced(prices):
    terms = {
        "geo": "us",
        "speed": "fast",
        "server_tools": {"web_search_requests": 3, "web_fetch_requests": 9},
    }
    found = account([call("a", 0, read=1_000, output=1_000, model="claude-opus-5", **terms)], prices)
    # opus 5, fast: 10 base, read 1, output 50; us x 1.1; 0.01 USD per search
    assert found.total.paid == round(1_000 * 1_000 * 1.1) + round(1_000 * 50_000 * 1.1) + 30_000_000


steps = st.lists(
    st.tuples(
        st.sampled_from([5, 100, 239, 241, 299, 301, 480, 700, 3_599, 3_601, 9_000]), st.integers(1, 3)
    ),
    min_size=1,
    max_size=8,
)


def run(requests, placement, prices):
    simulator = Simulator(named(placement), prices, Assumptions())
    return [simulator.feed(request).usage for request in requests]


def cost(requests, usages, prices):
    return sum(sum(prices.cost(request, usage)) for request, usage in zip(requests, usages, strict=True))


@settings(max_examples=60)
@given(steps=steps)
def test_the_other_lifetime_costs_what_the_simulator_says(prices, blocks, ask, steps):
    """A conversation that only grows: what the usage alone says of another lifetime is what its blocks say."""
    requests, head, t = [], blocks(1, 5_000)[-1], DAY
    for gap, grown in steps:
        t += gap
        head = blocks(grown, 500, start=head, seed=len(requests))[-1]
        requests.append(ask(head, t, session="s"))
    for placement, other, field in (
        ("automatic", "automatic_1h", "all_1h"),
        ("automatic_1h", "automatic", "all_5m"),
    ):
        usages = run(requests, placement, prices)
        calls = [
            Call(id=request.id, t=request.t, model=SONNET, usage=usage, session="s")
            for request, usage in zip(requests, usages, strict=True)
        ]
        found = account(calls, prices)
        assert found.total.paid == cost(requests, usages, prices)
        assert getattr(found, field) == cost(requests, run(requests, other, prices), prices)


@settings(max_examples=60)
@given(steps=steps, limit=st.sampled_from([0, 480, 3_600]))
def test_pings_cost_and_save_what_the_simulator_says(prices, blocks, ask, steps, limit):
    """The pings are sent as requests; the last conversation's end is left out of both."""
    requests, head, t = [], blocks(1, 5_000)[-1], DAY
    sent = []
    for number, (gap, grown) in enumerate(steps):
        if requests:
            every = [n * 240 for n in range(1, 100) if n * 240 < gap and n * 240 <= limit]
            sent += [ask(head, t + later, session="s", id=f"ping{number}/{later}") for later in every]
        t += gap
        head = blocks(grown, 500, start=head, seed=len(requests))[-1]
        requests.append(ask(head, t, session="s"))
    usages = run(requests, "automatic", prices)
    calls = [
        Call(id=request.id, t=request.t, model=SONNET, usage=usage, session="s")
        for request, usage in zip(requests, usages, strict=True)
    ]
    found = account(calls, prices, Pings(240, limit)).pings
    both = sorted([*requests, *sent], key=lambda request: request.t)
    pinged = cost(both, run(both, "automatic", prices), prices)
    assert found.sent - found.sent_after_the_end == len(sent)
    change = found.cost - found.cost_after_the_end - found.saved
    # a ping that comes too late writes: the account prices it as a read
    assert cost(requests, usages, prices) + change == pinged
