"""Sessions from requests, the prefix cache by hand, and capacities against trying every load."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.claude.assumptions import Assumptions
from kvbench.claude.request import MESSAGES, TEXT, TOOL, TOOLS, ContentBlock, Hashing, Request, chain
from kvbench.claude.simulate import ListTrace
from kvbench.config.errors import UserError
from kvbench.experiments.two_layer.sessions import (
    HostedRequest,
    IsolatedSessions,
    PrefixPool,
    capacity,
    loaded,
    sessions,
    unloaded,
)


def turn(t, *blocks, output=10):
    return HostedRequest(float(t), tuple(blocks), output)


def tokens(turn, reused):
    """One second per token that is computed, a tenth per token that is generated."""
    return float(turn.prompt - reused), turn.output / 10


SESSION = (
    turn(0, (1, 160)),
    turn(10, (1, 160), (2, 40)),
    turn(20, (1, 160), (2, 40), (3, 64)),
)


def request(name, session, t, blocks, output=5, before=0):
    nodes = chain(
        [ContentBlock(tier, kind, own, size) for tier, kind, own, size in blocks],
        Hashing(),
        (0, 0, 0),
        before,
    )
    return Request(id=name, t=t, model="m", head=nodes[-1], session=session, output=output)


def test_sessions_start_at_zero_without_the_apis_own_tokens():
    first, second = (TOOLS, TOOL, 1, 30), (MESSAGES, TEXT, 2, 12)
    found = sessions(
        [
            request("a", "x", 100.0, [first], before=497),
            request("b", "y", 103.0, [first]),
            request("c", "x", 107.0, [first, second], before=497),
        ]
    )
    assert [[turn.t for turn in session] for session in found] == [[0.0, 7.0], [0.0]]
    assert [turn.prompt for turn in found[0]] == [30, 42]
    assert found[0][0].path[0] == found[0][1].path[0] == found[1][0].path[0]


def test_requests_that_cannot_be_served():
    with pytest.raises(UserError, match="request a: no output tokens, nothing to decode"):
        sessions([request("a", "x", 0.0, [(TOOLS, TOOL, 1, 30)], output=0)])
    with pytest.raises(UserError, match="trace: it contains no requests"):
        sessions([])


def test_isolated_sessions_have_separate_workspaces():
    trace = ListTrace([request(name, name, 0.0, [(TOOLS, TOOL, 1, 30)]) for name in "ab"])
    assert len({found.workspace for found in IsolatedSessions(trace).requests(Assumptions())}) == 2


def test_a_pool_finds_whole_pages_but_never_the_last_token():
    pool = PrefixPool(1000)
    assert [pool.serve(0, turn) for turn in SESSION] == [0, 160, 192]  # of 200, 12 pages of 16
    assert pool.serve(0, SESSION[0]) == 144  # of 160, whose last token must be computed
    assert pool.serve(1, SESSION[0]) == 0  # another session shares nothing


def test_a_pool_evicts_least_recently_used_sessions_end_first():
    pool = PrefixPool(300)
    pool.serve(0, SESSION[2])
    # 264 of 300 are taken: another 160 push out the end (64), the middle (40) and with them nothing of the beginning
    pool.serve(1, turn(0, (9, 130)))
    assert pool.serve(0, SESSION[2]) == 160
    full = PrefixPool(100)
    assert [full.serve(0, turn) for turn in (*SESSION, *SESSION)] == [0] * 6


def test_a_session_alone():
    found = unloaded([SESSION], tokens, 1000)
    assert found.seconds == 160 + (200 - 160) + (264 - 192) + 3
    assert found.prefill == pytest.approx(272 / 275)
    assert found.reused == pytest.approx(352 / 624)
    assert unloaded([SESSION], tokens, 0).seconds == 624 + 3


def test_sessions_evict_each_other_under_load():
    """At one session per day each has the whole pool; with many at once, 300 tokens hold the beginning of one."""
    alone = unloaded([SESSION], tokens, 300).seconds
    assert loaded([SESSION], tokens, 300, 1).seconds == alone
    assert loaded([SESSION], tokens, 300, 86_400).seconds == 627
    assert loaded([SESSION], tokens, 1e6, 86_400).seconds == alone


def test_capacity_is_the_highest_load_that_fits():
    """Every load is tried, because sessions take longer under load."""
    longer = tuple(replace(turn, t=turn.t * 500) for turn in SESSION)
    for busy_s in (10_000.0, 40_000.0):
        for pool in (0, 1500, 1e9):
            found = capacity([longer], tokens, pool, busy_s)
            fits = [
                load
                for load in range(1, 180)
                if load * loaded([longer], tokens, pool, load).seconds <= busy_s
            ]
            assert found == max(fits, default=0)
    assert capacity([SESSION], tokens, 0, 600.0) == 0


def test_counted_sessions_see_the_same_load_at_both_ends():
    """With several kinds of sessions, every kind is counted once at any load."""
    short, long = SESSION[:1], SESSION
    both = (unloaded([short], tokens, 0).seconds + unloaded([long], tokens, 0).seconds) / 2
    for load in (1, 1000, 86_400):
        assert loaded([short, long], tokens, 0, load).seconds == both


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_seconds_do_not_depend_on_the_order_of_the_sessions(seconds, random):
    """The printed sums are correctly rounded, so that they are the same on every Python version."""

    def spent(request, reused):
        return seconds[request.output], seconds[request.output] / 3

    recorded = [(turn(0, (1, 16), output=number),) for number in range(len(seconds))]
    shuffled = random.sample(recorded, len(recorded))
    assert unloaded(recorded, spent, 0.0) == unloaded(shuffled, spent, 0.0)
