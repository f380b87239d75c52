"""Sessions of a recorded trace: shared blocks, times, limits."""

import pytest

from kvbench.claude.request import MESSAGES, TEXT, ContentBlock, Hashing, Request, append, root
from kvbench.config.errors import UserError
from kvbench.experiments.vllm_load.trace import of_trace

VOCABULARY = range(100, 1000)


def chain(*blocks):
    """The last node of a prompt of (hash, tokens) blocks."""
    node = root()
    for digest, tokens in blocks:
        node = append(node, ContentBlock(MESSAGES, TEXT, digest, tokens), Hashing(), (0, 0, 0))
    return node


def request(session, t, *blocks, output=10, ttft=0.0):
    return Request(f"{session}/{t}", t, "m", chain(*blocks), session=session, output=output, ttft=ttft)


def sessions(requests, **options):
    return of_trace(requests, VOCABULARY, **{"max_context": 1000, "max_output": 50, **options})


def test_prompts_share_exactly_the_recorded_blocks():
    system, first, second, other = (1, 40), (2, 10), (3, 20), (4, 10)
    (session, branch) = sessions(
        [
            request("a", 0, system, first),
            request("a", 5, system, first, second),
            request("b", 6, system, other),
        ]
    )
    one, two = (turn.prompt for turn in session.turns)
    assert (len(one), len(two)) == (50, 70)
    assert two[:50] == one
    (three,) = (turn.prompt for turn in branch.turns)
    assert three[:40] == one[:40] and three[40] != one[40]
    assert set(one) <= set(VOCABULARY)


def test_times_are_those_of_the_trace():
    requests = [
        request("a", 100.0, (1, 5), ttft=2.0),
        request("b", 103.0, (1, 5)),
        request("a", 110.0, (1, 5), (2, 5)),
    ]
    a, b = sessions(requests, speed=2.0)
    assert (a.at, b.at) == (0.0, 1.5)
    assert [turn.gap for turn in a.turns] == [0.0, 4.0]


def test_shrink_and_sessions_that_end_at_a_long_prompt():
    requests = [
        request("a", 0, (1, 400), output=80),
        request("a", 1, (1, 400), (2, 4000)),
        request("a", 2, (1, 400)),
        request("b", 3, (3, 1)),
    ]
    a, b = sessions(requests, shrink=4, max_context=500)
    assert [(len(turn.prompt), turn.max_tokens) for turn in a.turns] == [(100, 20)]
    assert [len(turn.prompt) for turn in b.turns] == [1]
    with pytest.raises(UserError, match="no prompt of it fits 10 tokens"):
        sessions(requests[:1], max_context=10)
    with pytest.raises(UserError, match="speed: 0 is not allowed"):
        sessions(requests, speed=0)
