"""Ranges, flat memory, and what an illegal placement does."""

import gc
import tracemalloc
import weakref
from pathlib import Path

import pytest

from kvbench.claude import curves
from kvbench.claude.assumptions import Assumptions
from kvbench.claude.placements import explicit_four, named, none, previous_turn, registry
from kvbench.claude.request import ContentBlock, Hashing, append, root
from kvbench.claude.simulate import ListTrace, Simulator, simulate, simulate_range
from kvbench.claude.traces import sessions
from kvbench.claude.traces.kv_cache_tester import KvCacheTesterTrace
from kvbench.claude.traces.synthetic import Synthetic, SyntheticTrace
from kvbench.config.errors import UserError
from kvbench.experiments.bench_prompt_cache.run import measure

MIDNIGHT = 1_795_478_400.0
PLACES = {name: named(name) for name in ("none", "automatic", "explicit_four")}


def test_a_range_holds_every_open_point(prices):
    """With 22 tool results per turn, the result depends on R9 and the lookback; the range shows it."""
    trace = SyntheticTrace(Synthetic(turns=6, tool_calls=22, context=22_000), prices)
    found = simulate_range(trace, PLACES, prices)
    result = found["automatic"]
    assert (
        set(result.flips) == {code for code, _, _ in Assumptions().flips()} >= {f"U{k}" for k in range(1, 9)}
    )
    assert result.flips["R9"] > 0
    assert result.flips["U8"] > 0
    assert result.low <= result.base.cost < result.high
    assert result.high >= result.base.cost + max(result.flips.values())
    assert found["none"].low == found["none"].high == found["none"].base.cost


def test_what_counts_towards_the_rate_limit(prices, blocks, ask):
    """R23: reads do not, on all models but one; the peak is that of the busiest clock minute."""
    nodes = blocks(3, 3000)
    # a minute of the clock begins at 0 and at 60: the last two requests share one
    prompts = [(0.0, nodes[0]), (61.0, nodes[1]), (119.0, nodes[2])]
    for model, automatic, plain in (
        ("claude-sonnet-4-6", 6000, 15_000),
        ("claude-haiku-3-5", 15_000, 15_000),
    ):
        requests = [ask(node, MIDNIGHT + t, model=model) for t, node in prompts]
        found = simulate(requests, {name: named(name) for name in ("automatic", "none")}, prices)
        assert found["automatic"].read == 9000
        assert (found["automatic"].peak_itpm, found["none"].peak_itpm) == (automatic, plain)


def test_an_illegal_placement_is_named(prices):
    requests = list(SyntheticTrace(Synthetic(turns=3), prices).requests(Assumptions()))
    backwards = Simulator(lambda request: ((request.tools_end, 300), (request.head, 3600)), prices)
    with pytest.raises(UserError, match=r"request s0/0/0: a 1h breakpoint .* comes after a 5m one"):
        backwards.feed(requests[0])
    nodes = [requests[2].head]
    while nodes[-1].parent.index:
        nodes.append(nodes[-1].parent)
    five = Simulator(lambda request: tuple((node, 300) for node in nodes[4::-1]), prices)
    with pytest.raises(UserError, match="5 breakpoints, at most 4"):
        five.feed(requests[2])
    with pytest.raises(UserError, match="placement=automatc: allowed are"):
        named("automatc")


def test_memory_is_flat_in_the_length_of_the_trace(prices):
    """Conversations one after another: three times as many requests, the same peak."""

    def peak(sessions):
        spec = Synthetic(sessions=sessions, turns=20, stagger=4_000.0)
        gc.collect()
        tracemalloc.start()
        simulate(SyntheticTrace(spec, prices).requests(Assumptions()), PLACES, prices)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(120) < 1.5 * peak(40)


def test_session_files_are_held_one_at_a_time(tmp_path, prices):
    sessions.write_sessions(tmp_path, 20)
    alive = weakref.WeakSet()
    for request in KvCacheTesterTrace(tmp_path, prices).requests(Assumptions()):
        alive.add(request.head)
        assert len(alive) <= 2 * max(sessions.REQUESTS)


def test_placements_are_legal_and_never_beyond_the_prompt(prices):
    for request in SyntheticTrace(Synthetic(turns=5, tools=0), prices).requests(Assumptions()):
        for placement in registry().values():
            markers = placement(request)
            assert [node.index for node, _ in markers] == sorted({node.index for node, _ in markers})
            assert all(0 < node.index <= request.head.index for node, _ in markers)


def test_previous_turn(prices):
    first, second, third = SyntheticTrace(Synthetic(turns=3), prices).requests(Assumptions())
    assert previous_turn(second.head).cum == first.head.cum
    assert previous_turn(first.head) is None
    assert len(explicit_four(third)) == 4


def test_automatic_skips_unmarkable_blocks(prices):
    text = append(root(), ContentBlock(2, 0, 1, 2000), Hashing(), (0, 0, 0))
    thinking = append(text, ContentBlock(2, 4, 2, 100, markable=False), Hashing(), (0, 0, 0))
    request = next(iter(SyntheticTrace(Synthetic(turns=1), prices).requests(Assumptions())))
    request.head = thinking
    assert named("automatic")(request) == ((text, 300),)


def test_five_minute_cliff_and_break_even(prices):
    turns = [[request] for request in SyntheticTrace(Synthetic(turns=8), prices).requests(Assumptions())]
    found = curves.by_gap(turns, [60.0, 301.0, 3601.0], PLACES | {"1h": named("automatic_1h")}, prices)
    assert found["automatic"][0] < found["none"][0] < found["automatic"][1]
    assert found["1h"][1] < found["none"][1] < found["1h"][2]
    growing = curves.by_turn(turns, PLACES, prices)
    assert curves.break_even(growing["automatic"], growing["none"]) == 2
    assert curves.break_even(growing["none"], growing["none"]) is None
    assert curves.break_even([5, 1, 9], [4, 4, 10]) == 2
    assert [len(turn) for turn in curves.in_turns([turn[0] for turn in turns], 30.0)] == [1] * 8


def test_replaying_twice_gives_the_same_numbers(prices):
    trace = ListTrace(
        list(SyntheticTrace(Synthetic(sessions=3, jitter=True), prices).requests(Assumptions()))
    )
    assert repr(simulate_range(trace, PLACES, prices)) == repr(simulate_range(trace, PLACES, prices))


def test_the_benchmark_counts_its_requests(tmp_path):
    sessions.write_sessions(tmp_path, 3)
    speed = measure(Path(tmp_path), repeat=1)
    assert (speed.requests, speed.placements) == (13, 4)
    assert "13 requests x 4 placements, loading included" in str(speed)


def test_assumptions_are_validated():
    with pytest.raises(UserError, match=r"switches\.lookback=after: allowed are counted, before"):
        Assumptions(lookback="after")
    with pytest.raises(UserError, match="lost_reads"):
        Assumptions(lost_reads=2.0)
    assert none(None) == ()
