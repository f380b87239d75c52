"""Sessions from requests, and the prefix cache by hand."""

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
    sessions,
)


def turn(t, *blocks, output=10):
    return HostedRequest(float(t), tuple(blocks), output)


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


def test_blocks_that_always_occur_together_are_one_piece():
    """The last block of the first prompt is in no other one, so it stays alone."""
    first, second, third, last = ((MESSAGES, TEXT, number, 10 * number) for number in (1, 2, 3, 4))
    (found,) = sessions(
        [
            request("a", "x", 0.0, [first, second, third]),
            request("b", "x", 1.0, [first, second, last]),
            request("c", "x", 2.0, [first, second, last]),
        ]
    )
    assert [[tokens for _, tokens in turn.path] for turn in found] == [[30, 30], [30, 40], [30, 40]]
    assert found[0].path[0] == found[1].path[0] and found[1].path == found[2].path


def test_a_pool_finds_whole_pages_but_never_the_last_token():
    pool = PrefixPool()
    assert [pool.serve(0, turn, 1000) for turn in SESSION] == [0, 160, 192]  # of 200, 12 pages of 16
    assert pool.serve(0, SESSION[0], 1000) == 144  # of 160, whose last token must be computed
    assert pool.serve(1, SESSION[0], 1000) == 0  # another session shares nothing


def test_a_pool_leaves_the_last_tokens_to_be_computed():
    """A method that chooses by the queries of the last 32 tokens needs them computed: 160 - 32 = 8 pages."""
    pool = PrefixPool(32)
    pool.serve(0, SESSION[0], 1000)
    assert pool.serve(0, SESSION[0], 1000) == 128
    assert PrefixPool(500).serve(0, SESSION[0], 1000) == 0


def test_a_pool_evicts_least_recently_used_sessions_end_first():
    pool = PrefixPool()
    pool.serve(0, SESSION[2], 300)
    # 264 of 300 are taken: another 130 push out the end (64) and 30 of the 40 before it
    pool.serve(1, turn(0, (9, 130)), 300)
    assert pool.serve(0, SESSION[2], 300) == 160  # of 170
    full = PrefixPool()
    # of a prompt that does not fit its beginning stays
    assert [full.serve(0, turn, 100) for turn in (*SESSION, *SESSION)] == [0] + [96] * 5


def test_a_pool_shrinks_when_its_room_does():
    pool = PrefixPool()
    pool.serve(0, SESSION[0], 1000)
    pool.serve(1, turn(0, (9, 16)), 64)
    assert pool.serve(0, SESSION[0], 1000) == 48
    assert pool.serve(0, SESSION[0], 0) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40), st.integers(1, 900))
def test_a_pool_never_holds_more_than_its_room(requests, room):
    pool = PrefixPool()
    for session, number in requests:
        pool.serve(session, SESSION[number], room)
        assert sum(pool._held.values()) == pytest.approx(pool._used) and pool._used <= room
