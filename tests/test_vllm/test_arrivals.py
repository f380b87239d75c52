"""Poisson arrivals, and sessions of prompts."""

import statistics

import pytest

from kvbench.config.errors import UserError
from kvbench.vllm.arrivals import Session, SessionTurn, of_prompts, poisson


def test_poisson_arrivals_have_their_rate_and_exponential_gaps():
    plain = [Session(str(i), (SessionTurn((1,), 1),)) for i in range(4000)]
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


def test_prompts_of_one_session_are_its_turns():
    found = of_prompts([("a", [1], 5), ("b", [2], 6), ("a", [1, 3], 7)], gap=2.0)
    assert found == [
        Session("a", (SessionTurn((1,), 5), SessionTurn((1, 3), 7, gap=2.0))),
        Session("b", (SessionTurn((2,), 6),)),
    ]
