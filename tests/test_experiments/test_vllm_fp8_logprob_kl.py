"""KL from top-k log probabilities: a lower bound of the exact one, equal to it if all tokens are listed."""

import math

import numpy as np
import pytest

from kvbench.experiments.vllm_fp8 import logprob_kl
from kvbench.experiments.vllm_fp8.distributions import distance_fields
from kvbench.vllm.errors import BadAnswer


def distribution(rng, size=200):
    logits = 3 * rng.standard_normal(size)
    return logits - np.log(np.exp(logits).sum())


def top(logprobs, k):
    return {int(i): float(logprobs[i]) for i in np.argsort(logprobs)[-k:]}


@pytest.mark.parametrize("k", [1, 5, 20, 100])
def test_a_lower_bound_that_rises_with_k(k):
    rng = np.random.default_rng(k)
    for _ in range(50):
        p, near = distribution(rng), 0.3 * rng.standard_normal(200)
        q = p + near - np.log(np.exp(p + near).sum())
        exact = float((np.exp(p) * (p - q)).sum())
        bound, covered = logprob_kl.kl_bound(top(p, k), top(q, k))
        assert 0 <= bound <= exact + 1e-12
        assert 0 <= covered <= 1
        assert logprob_kl.kl_bound(top(p, 200), top(q, 200))[0] == pytest.approx(exact, abs=1e-9)


def test_by_hand():
    p = {1: math.log(0.5), 2: math.log(0.3)}
    q = {1: math.log(0.25), 3: math.log(0.6)}
    # token 1 alone is listed by both: 0.5 against 0.25, the rest 0.5 against 0.75
    bound, covered = logprob_kl.kl_bound(p, q)
    assert bound == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75))
    assert covered == pytest.approx(0.5)


def test_means_over_positions():
    same, other = {"a": math.log(0.9), "b": math.log(0.1)}, {"a": math.log(0.1), "b": math.log(0.9)}
    found = logprob_kl.compare_logprobs([same, same], [same, other])
    assert found.positions == 2 and found.top1 == 0.5 and found.covered == pytest.approx(1)
    assert found.kl == pytest.approx(0.5 * (0.9 * math.log(9) - 0.1 * math.log(9)), rel=1e-6)
    assert logprob_kl.compare_logprobs([], []).kl is None


def test_equal_distributions_have_zero_kl_despite_rounding():
    rounded = {1: -0.105, 2: -2.302}
    assert logprob_kl.kl_bound(rounded, rounded)[0] == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_logprob_that_is_not_finite_is_no_closeness(value, side):
    pair = [{1: math.log(0.5), 2: math.log(0.3)}, {1: math.log(0.4), 2: math.log(0.4)}]
    pair[side] = pair[side] | {2: value}
    with pytest.raises((ArithmeticError, OverflowError)):
        logprob_kl.compare_logprobs([pair[0]], [pair[1]])
    with pytest.raises(BadAnswer, match=r"^logprobs of the answer: "):
        distance_fields([pair[0]], [pair[1]], 1)


def test_probabilities_that_add_up_to_more_than_1_are_refused():
    with pytest.raises(ArithmeticError, match="a sum of probabilities is 1"):
        logprob_kl.kl_bound({1: 0.0, 2: -2.0}, {1: -0.1, 2: -3.0})
