import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.report import stats
from kvbench.report.clusters import Clusters

Z = 1.959963984540054
DIFFERENCES = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=1, max_size=40)


def alone(values):
    """Each value a cluster of its own."""
    return Clusters(values, range(len(values)))


@pytest.mark.parametrize(("wins", "losses", "n"), [(1, 4, 20), (0, 0, 8), (0, 8, 8), (3, 3, 7), (0, 1, 200)])
def test_differences_of_0_1_scores_have_the_interval_of_bonett_and_price(wins, losses, n):
    # their formula: both counts plus one over n + 2, the Wald variance of the difference of two shares
    p, q = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    half = Z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    found = stats.difference_interval(alone([1] * wins + [-1] * losses + [0] * (n - wins - losses)))
    assert found == pytest.approx((max(-1, p - q - half), min(1, p - q + half)), abs=1e-12)


def test_eight_equal_losses_are_no_certainty():
    # sum -2, sum of squares 0.5: centre -2/10, variance 2.5/10 - 0.04
    half = Z * math.sqrt(0.21 / 10)
    assert stats.difference_interval(alone([-0.25] * 8)) == pytest.approx((-0.2 - half, -0.2 + half))


@pytest.mark.parametrize(("right", "n"), [(0, 20), (1, 20), (13, 20), (1, 1), (250, 500)])
def test_0_1_scores_have_the_interval_of_agresti_and_coull(right, n):
    p = (right + 2) / (n + 4)
    half = Z * math.sqrt(p * (1 - p) / (n + 4))
    found = stats.score_interval(alone([1] * right + [0] * (n - right)))
    assert found == pytest.approx((max(0, p - half), min(1, p + half)), abs=1e-12)


def test_scores_between_have_their_own_variance():
    # sum 4 + 2 of 12, sum of squares 2 + 2
    half = Z * math.sqrt((4 / 12 - 0.25) / 12)
    assert stats.score_interval(alone([0.5] * 8)) == pytest.approx((0.5 - half, 0.5 + half))


@given(DIFFERENCES)
def test_difference_intervals_hold_the_mean_have_a_width_and_mirror(d):
    low, high = stats.difference_interval(alone(d))
    assert -1 <= low <= np.mean(d) + 1e-12 and np.mean(d) - 1e-12 <= high <= 1
    assert high - low > 1 / (len(d) + 2)
    assert stats.difference_interval(alone([-x for x in d])) == pytest.approx((-high, -low))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_score_intervals_hold_the_mean_and_have_a_width(x):
    low, high = stats.score_interval(alone(x))
    assert 0 <= low <= np.mean(x) + 1e-12 and np.mean(x) - 1e-12 <= high <= 1
    assert high - low > 1 / (len(x) + 4)


@given(DIFFERENCES, st.data())
def test_intervals_move_no_farther_than_a_value_does(d, data):
    place, step = data.draw(st.integers(0, len(d) - 1)), data.draw(st.floats(-0.01, 0.01))
    moved = list(d)
    moved[place] = min(1, max(-1, d[place] + step))
    before, after = stats.difference_interval(alone(d)), stats.difference_interval(alone(moved))
    assert np.abs(np.subtract(before, after)).max() <= 3 * abs(step) + 1e-12


def test_nothing_has_no_interval_and_values_beyond_the_bounds_none():
    for interval in (stats.score_interval, stats.difference_interval, stats.kl_interval):
        assert all(math.isnan(end) for end in interval(alone([np.nan])))
    with pytest.raises(ValueError, match="allowed: 0 to 1"):
        stats.score_interval(alone([55.0]))
    with pytest.raises(ValueError, match="allowed: -1 to 1"):
        stats.difference_interval(alone([-1.5]))


def test_over_tasks_the_pseudo_values_have_the_largest_weight():
    both = Clusters([-1, 0, 0, 0, -1], "abcde", strata="xxxxy")  # task means -0.25 and -1
    weighted = np.array([-0.625, 0, 0, 0, -2.5])
    centre = weighted.sum() / 7
    half = Z * math.sqrt(((weighted**2).sum() + 2 * 2.5**2) / 7 - centre**2) / math.sqrt(7)
    assert both.mean == pytest.approx(-0.625)
    assert stats.difference_interval(both) == pytest.approx((max(-1, centre - half), min(1, centre + half)))
    with pytest.raises(ValueError, match="strata"):
        stats.score_interval(Clusters([1, 0, 0, 0, 1], "abcde", strata="xxxxy"))


def test_kl_intervals_are_the_bootstrap_t_by_another_route():
    x = np.random.default_rng(2).lognormal(-2, 1, 25)
    draws = np.random.default_rng(7).choice(x, (100_000, 25))
    t = (draws.mean(1) - x.mean()) / scipy.stats.sem(draws, axis=1)
    low, high = x.mean() - np.quantile(t, [0.975, 0.025]) * scipy.stats.sem(x)
    assert stats.kl_interval(alone(x)) == pytest.approx((low, high), rel=0.04)
    # to the right of Student's, as KL is skewed
    assert high - x.mean() > scipy.stats.t.ppf(0.975, 24) * scipy.stats.sem(x)


def test_kl_intervals_say_when_they_know_nothing():
    for values in ([0.1, 0.2, 0.3], [0.2] * 8, [0.0] * 20):
        assert all(math.isnan(end) for end in stats.kl_interval(alone(values)))
    # 6 of 8 are equal: a tenth of the resamples have no spread
    low, high = stats.kl_interval(alone([0.001] * 6 + [1.0, 1.1]))
    assert low >= 0 and math.isinf(high)


@settings(max_examples=25)
@given(st.lists(st.floats(1e-3, 10), min_size=4, max_size=12, unique=True), st.floats(0.001, 5))
def test_kl_p_values_agree_with_the_intervals(x, margin):
    _, high = stats.kl_interval(alone(x))
    assert (stats.kl_p_value(alone(x), margin) < 0.025) == (high < margin) or math.isclose(high, margin)
    d = alone(np.subtract(x, margin))
    low, high = stats.kl_difference_interval(d)
    if min(abs(low), abs(high)) > 1e-9:
        assert (stats.kl_difference_p_value(d) < 0.05) == (not low <= 0 <= high)


def test_kl_differences_of_either_sign():
    d = np.random.default_rng(1).normal(-0.5, 1, 60)
    low, high = stats.kl_difference_interval(alone(d))
    expected = scipy.stats.t.interval(0.95, 59, d.mean(), scipy.stats.sem(d))
    assert (low, high) == pytest.approx(expected, abs=0.05)
    assert stats.kl_difference_p_value(alone(d)) == pytest.approx(
        scipy.stats.ttest_1samp(d, 0).pvalue, abs=0.003
    )
    assert stats.kl_difference_interval(alone(-d)) == pytest.approx((-high, -low), abs=0.03)


@pytest.mark.parametrize(
    ("margin", "changed", "delta"), [(0.05, 0, 0), (0.05, 0.2, 0), (0.1, 0.1, -0.05), (1, 0, 0)]
)
def test_samples_needed_is_the_first_number_that_is_enough(margin, changed, delta):
    n = stats.samples_needed(margin, changed=changed, delta=delta)
    assert n is not None

    def low(n):
        # n differences of that mean and mean square
        centre = n * delta / (n + 2)
        return centre - Z * math.sqrt(((n * max(changed, delta**2) + 2) / (n + 2) - centre**2) / (n + 2))

    assert low(n) > -margin and (n == 1 or low(n - 1) <= -margin)


def test_samples_needed_without_a_change_is_that_of_equal_answers():
    n = stats.samples_needed(0.05)
    assert n is not None
    assert (
        stats.difference_interval(alone([0] * n))[0]
        > -0.05
        >= stats.difference_interval(alone([0] * (n - 1)))[0]
    )
    assert stats.samples_needed(0.05, delta=-0.05) is None and stats.samples_needed(0.05, delta=-0.2) is None
    with pytest.raises(ValueError, match="above 0"):
        stats.samples_needed(0)


def test_captions_of_earlier_intervals_say_so():
    assert stats.former(pd.Series([stats.VERSION] * 2)) == ""
    assert stats.former(pd.Series([1, stats.VERSION])) == " by the former method"
