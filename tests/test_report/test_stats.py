import collections
import itertools
import math

import numpy as np
import pytest
import scipy.stats

from kvbench.report import stats


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (1, 20), (13, 20), (20, 20), (1, 1), (250, 500)])
def test_wilson_equals_scipy(successes, n):
    expected = scipy.stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert stats.wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_bonett_price_by_hand():
    # n = 20, 1 win, 4 losses: (2 - 5) / 22 -+ 1.95996 * sqrt((7/22 - (3/22)^2) / 22)
    half = 1.959964 * math.sqrt((7 / 22 - (3 / 22) ** 2) / 22)
    assert stats.bonett_price(1, 4, 20) == pytest.approx((-3 / 22 - half, -3 / 22 + half), abs=1e-6)


def test_no_discordant_pair_is_not_certainty():
    low, high = stats.difference_interval([0.0] * 20)
    assert low == pytest.approx(-high) and high > 0.1


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (0, 5), (1, 8), (3, 3), (10, 2), (0, 60)])
def test_mcnemar_equals_the_binomial_test(wins, losses):
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert stats.mcnemar(wins, losses) == pytest.approx(expected, rel=1e-12)


def test_sign_flip_exact_by_hand():
    # of the 8 sign patterns of (1, 2, 3) two reach |sum| = 6; of (1, 2, -3) all reach 0
    assert stats.sign_flip([0.1, 0.2, 0.3]) == 0.25
    assert stats.sign_flip([0.1, 0.2, -0.3]) == 1.0
    assert stats.sign_flip([0.0, 0.0]) == 1.0


def test_sign_flip_exact_equals_enumeration():
    d = np.random.default_rng(0).normal(0.3, 1, size=9)
    sums = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True)))
        for signs in itertools.product((1, -1), repeat=9)
    ]
    expected = np.mean([total >= abs(d.sum()) - 1e-12 for total in sums])
    assert stats.sign_flip(np.append(d, [0.0, np.nan])) == expected


@pytest.mark.parametrize("n", [20, 30, 31, 60])
def test_sign_flip_of_parts_found_is_exact_at_every_number_of_samples(n):
    quarters = np.random.default_rng(n).integers(-4, 3, size=n)
    chances = {0: 1}
    for q in map(abs, quarters.tolist()):
        moved = collections.Counter()
        for total, count in chances.items():
            moved[total + q] += count
            moved[total - q] += count
        chances = moved
    reached = sum(count for total, count in chances.items() if abs(total) >= abs(quarters.sum()))
    assert stats.sign_flip(quarters / 4) == pytest.approx(reached / 2**n, rel=1e-12)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (0, 5), (1, 8), (3, 3), (10, 2), (0, 60), (30, 45)])
def test_sign_flip_of_0_1_differences_is_mcnemar(wins, losses):
    differences = [1.0] * wins + [-1.0] * losses
    assert stats.sign_flip(differences) == pytest.approx(stats.mcnemar(wins, losses), rel=1e-12)


def test_sign_flip_goes_below_what_draws_could_show():
    assert stats.sign_flip([0.5] * 20) == 2 * 0.5**20
    assert stats.sign_flip([0.5, 0.25] * 30) == 2 * 0.5**60


@pytest.mark.parametrize(("n", "mean"), [(31, 0.35), (80, 0.3), (300, -0.1)])
def test_sign_flip_of_many_uneven_differences_is_near_scipy(n, mean):
    d = np.random.default_rng(n).normal(mean, 1, size=n)
    expected = scipy.stats.permutation_test(
        (d,), np.sum, permutation_type="samples", n_resamples=50_000, rng=0, batch=10_000
    )
    assert stats.sign_flip(d) == pytest.approx(expected.pvalue, abs=0.005)


def test_sign_flip_of_differences_that_cancel_on_the_grid_is_one():
    assert stats.sign_flip([1.0, -1.0] * 20 + [0.0004]) == 1.0


def test_p_value_chooses_the_test():
    binary = [1, -1, -1, -1, -1, -1, 0, 0]
    assert stats.difference_p_value(binary) == stats.mcnemar(1, 5)
    assert stats.difference_p_value([0.25, -0.5]) == stats.sign_flip([0.25, -0.5])
    assert math.isnan(stats.difference_p_value([np.nan]))


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04 -> running maximum
    adjusted = stats.holm([0.01, 0.04, np.nan, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    assert stats.holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert stats.holm([]).tolist() == []


def test_bootstrap_is_deterministic_and_near_scipy():
    x = np.random.default_rng(2).random(25)
    low, high = stats.bootstrap(x)
    assert (low, high) == stats.bootstrap(x)
    expected = scipy.stats.bootstrap((x,), np.mean, method="percentile", rng=0).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_bootstrap_of_many_values_goes_in_blocks():
    x = np.random.default_rng(3).random(3000)
    low, high = stats.bootstrap(x)
    half = 1.96 * x.std() / math.sqrt(3000)
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.001)


def test_mean_interval_chooses_and_drops_nan():
    assert stats.mean_interval([1, 0, 1, np.nan]) == stats.wilson(2, 3)
    assert stats.mean_interval([0.5, 0.25, 1.0]) == stats.bootstrap([0.5, 0.25, 1.0])
    assert all(math.isnan(bound) for bound in stats.mean_interval([0.5]))
    assert all(math.isnan(bound) for bound in stats.mean_interval([]))


@pytest.mark.parametrize(
    ("delta", "p", "holm", "n", "text"),
    [
        (-0.3, 0.2, 0.2, 20, "no difference detectable at n = 20"),
        (-0.3, 0.001, 0.01, 20, "worse by 0.30"),
        (0.3, 0.001, 0.01, 20, "better by 0.30"),
        (-1.0, 0.008, 0.3, 8, "worse on its own, not after Holm: n = 8 is too few for this table"),
        (np.nan, np.nan, np.nan, 0, "no pair to compare"),
        (0.0, np.nan, np.nan, 5, "no difference detectable at n = 5"),
    ],
)
def test_verdict(delta, p, holm, n, text):
    assert stats.verdict(delta, p, holm, n) == text
