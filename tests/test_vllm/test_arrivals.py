"""Arrivals drawn and taken from traces, and the prompts made for them."""

import statistics

import pytest

from kvbench.claude.request import MESSAGES, TEXT, ContentBlock, Hashing, Request, append, root
from kvbench.config.errors import UserError
from kvbench.vllm.arrivals import Session, Turn, of_prompts, of_trace, poisson

WORDS = range(100, 1000)


def chain(*blocks):
    """The last node of a prompt of (hash, tokens) blocks."""
    node = root()
    for digest, tokens in blocks:
        node = append(node, ContentBlock(MESSAGES, TEXT, digest, tokens), Hashing(), (0, 0, 0))
    return node


def asked(session, t, *blocks, output=10, ttft=0.0):
    return Request(f"{session}/{t}", t, "m", chain(*blocks), session=session, output=output, ttft=ttft)


def taken(requests, **options):
    return of_trace(requests, WORDS, **{"most_tokens": 1000, "most_output": 50, **options})


def test_poisson_arrivals_have_their_rate_and_exponential_gaps():
    plain = [Session(str(i), (Turn((1,), 1),)) for i in range(4000)]
    found = poisson(plain, rate=5.0, seed=1)
    times = [session.at for session in found]
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    assert min(gaps) >= 0
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.05)
    # an exponential's deviation is its mean
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.08)
    assert found == poisson(plain, rate=5.0, seed=1) != poisson(plain, rate=5.0, seed=2)
    assert [session.name for session in found] == [session.name for session in plain]
    assert {session.at for session in poisson(plain, rate=None)} == {0.0}
    with pytest.raises(UserError, match="rate: 0 is not allowed"):
        poisson(plain, rate=0)


def test_prompts_of_a_trace_share_exactly_the_blocks_that_they_shared():
    system, first, second, other = (1, 40), (2, 10), (3, 20), (4, 10)
    (session, branch) = taken(
        [
            asked("a", 0, system, first),
            asked("a", 5, system, first, second),
            asked("b", 6, system, other),
        ]
    )
    one, two = (turn.prompt for turn in session.turns)
    assert (len(one), len(two)) == (50, 70)
    assert two[:50] == one
    (three,) = (turn.prompt for turn in branch.turns)
    assert three[:40] == one[:40] and three[40] != one[40]
    assert set(one) <= set(WORDS)


def test_times_of_a_trace():
    requests = [
        asked("a", 100.0, (1, 5), ttft=2.0),
        asked("b", 103.0, (1, 5)),
        asked("a", 110.0, (1, 5), (2, 5)),
    ]
    a, b = taken(requests, speed=2.0)
    assert (a.at, b.at) == (0.0, 1.5)
    assert [turn.gap for turn in a.turns] == [0.0, 4.0]


def test_a_trace_is_made_smaller_and_long_prompts_end_their_session():
    requests = [
        asked("a", 0, (1, 400), output=80),
        asked("a", 1, (1, 400), (2, 4000)),
        asked("a", 2, (1, 400)),
        asked("b", 3, (3, 1)),
    ]
    a, b = taken(requests, shrink=4, most_tokens=500)
    assert [(len(turn.prompt), turn.max_tokens) for turn in a.turns] == [(100, 20)]
    assert [len(turn.prompt) for turn in b.turns] == [1]
    with pytest.raises(UserError, match="no prompt of it fits 10 tokens"):
        taken(requests[:1], most_tokens=10)
    with pytest.raises(UserError, match="speed: 0 is not allowed"):
        taken(requests, speed=0)


def test_prompts_of_one_session_are_its_turns():
    found = of_prompts([("a", [1], 5), ("b", [2], 6), ("a", [1, 3], 7)], gap=2.0)
    assert found == [Session("a", (Turn((1,), 5), Turn((1, 3), 7, gap=2.0))), Session("b", (Turn((2,), 6),))]
