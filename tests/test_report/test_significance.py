import collections
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.report import significance, stats
from kvbench.report.clusters import Clusters
from kvbench.report.significance import difference_p_value, fewest_changes, holm, verdict


def alone(values):
    """Each value a cluster of its own."""
    return Clusters(values, range(len(values)))


def p_of(values):
    return difference_p_value(alone(values))


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (0, 5), (1, 8), (3, 3), (10, 2), (0, 60), (30, 45)])
@pytest.mark.parametrize("size", [1, 0.3])
def test_differences_of_one_size_are_mcnemars(wins, losses, size):
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert p_of([size] * wins + [-size] * losses + [0.0] * 3) == pytest.approx(expected, rel=1e-12)


def test_sign_flip_by_hand():
    # of the 8 sign patterns of (1, 2, 3) two reach |sum| = 6; of (1, 2, -3) all reach 0
    assert p_of([0.1, 0.2, 0.3]) == 0.25
    assert p_of([0.1, 0.2, -0.3]) == 1.0
    assert p_of([0.0, 0.0]) == 1.0
    assert math.isnan(p_of([np.nan])) and math.isnan(p_of([]))


@given(
    st.lists(st.one_of(st.sampled_from([-1, -0.5, 0, 0.25, 1]), st.floats(-1, 1)), min_size=1, max_size=10)
)
def test_sign_flip_equals_enumeration(d):
    kept = alone(d).values
    sums = np.abs([np.dot(signs, kept) for signs in itertools.product((1, -1), repeat=len(kept))])
    expected = np.mean(sums >= abs(kept.sum()) - 1e-9 * np.abs(kept).sum())
    assert p_of(d) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=11, max_size=16))
def test_sign_flip_of_up_to_16_equals_enumeration(d):
    test_sign_flip_equals_enumeration.hypothesis.inner_test(d)


@pytest.mark.parametrize("n", [20, 36, 37, 80])
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
    assert p_of(quarters / 4) == pytest.approx(reached / 2**n, rel=1e-9)


def test_sign_flip_goes_below_what_draws_could_show():
    assert p_of([0.5] * 20) == 2 * 0.5**20
    assert p_of([0.5, 0.25] * 30) == pytest.approx(2 * 0.5**60, rel=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 3.0]), st.integers(20, 36))
def test_the_grid_is_never_below_the_exact_p_and_close_to_it(seed, skew, n):
    rng = np.random.default_rng(seed)
    d = rng.choice([-1, 1], n, p=[0.4, 0.6]) * np.exp(skew * rng.normal(size=n))
    d /= np.abs(d).max()
    exact = p_of(d)
    steps, _, error = significance._grid(d)
    grid = min(1.0, 2 * significance._tail_on_grid(d))
    assert exact * (1 - 1e-9) <= grid <= exact + 0.002
    assert error <= n / 2 and abs(steps).sum() > 0.9 * significance._CELLS


@pytest.mark.parametrize(("n", "mean"), [(37, 0.35), (80, 0.3), (300, -0.1)])
def test_sign_flip_of_many_uneven_differences_is_near_scipy(n, mean):
    d = np.random.default_rng(n).normal(mean, 1, size=n) / 5
    expected = scipy.stats.permutation_test(
        (d,), np.sum, permutation_type="samples", n_resamples=50_000, rng=0, batch=10_000
    )
    assert p_of(d) == pytest.approx(expected.pvalue, abs=0.006)


def test_small_differences_beside_large_ones_that_cancel_decide():
    # the sum is that of the small ones; a grid of 1/200 of the largest rounds them to nothing
    small = [0.001 * math.sqrt(k) for k in range(2, 42)]
    d = [1.0, -1.0] * 20 + small
    # 137846528820 / 2^40 of the patterns have a large sum of 0; then only all small ones with one sign reach the sum
    cancel = math.comb(40, 20) / 2**40
    assert p_of(d) == pytest.approx(1 - cancel + cancel * 2 / 2**40, abs=0.002)


def test_one_large_difference_and_many_small_ones():
    # the small ones cannot outweigh the large one, so that p is the chance that they reach what they are now
    small = [0.0021 * math.sqrt(k) for k in range(2, 42)]
    d = [1.0, *(x * (-1) ** i for i, x in enumerate(small))]
    rest = alone(d[1:]).values.sum()
    draws = np.random.default_rng(0).choice([-1, 1], (200_000, 40)) @ np.array(small)
    assert p_of(d) == pytest.approx(np.mean(draws >= rest), abs=0.006)


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04 -> running maximum
    adjusted = holm([0.01, 0.04, np.nan, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


@pytest.mark.parametrize(("comparisons", "needed"), [(1, 6), (42, 11), (172, 13), (430, 15)])
def test_fewest_changes_is_what_the_tests_need(comparisons, needed):
    assert fewest_changes(comparisons) == needed
    others = [1.0] * (comparisons - 1)
    for k, passes in ((needed - 1, False), (needed, True)):
        assert (holm([p_of([-1.0] * k), *others])[0] < significance.ALPHA) == passes


def test_a_table_says_what_it_can_show():
    assert significance.power(172, 20) == (
        "A mark: p < 0.05 after Holm's correction over 172 comparisons, for which at least 13 of 20 samples must "
        "change, all in one direction."
    )
    assert significance.power(42, 8).endswith("11 of 8 samples must change, all in one direction: here none is "
                                              "possible, however large a difference.")  # fmt: skip
    assert significance.power(0, 8) == "No row is compared."


@pytest.mark.parametrize(
    ("delta", "interval", "p", "holm", "n", "text"),
    [
        (-0.3, (-0.6, 0.1), 0.2, 0.2, 20, "no difference detectable at n = 20"),
        (
            -0.3,
            (-0.6, -0.1),
            0.06,
            0.2,
            8,
            "no difference detectable at n = 8; the interval alone leaves out 0",
        ),
        (-0.3, (-0.5, -0.1), 0.001, 0.01, 20, "worse by 0.30"),
        (0.3, (0.1, 0.5), 0.001, 0.01, 20, "better by 0.30"),
        (
            -0.25,
            (-0.5, 0.1),
            0.001,
            0.01,
            8,
            "worse by 0.25; the interval, which allows for rare gains, holds 0",
        ),
        (-1.0, (-1, -0.5), 0.008, 0.3, 8, "worse: p < 0.05 alone; not after Holm over 42"),
        (np.nan, (np.nan, np.nan), np.nan, np.nan, 0, "no pair to compare"),
        (0.0, (-0.3, 0.3), np.nan, np.nan, 5, "no difference detectable at n = 5"),
    ],
)
def test_verdict(delta, interval, p, holm, n, text):
    assert verdict(delta, interval, p, holm, n, 42) == text


@given(
    st.lists(st.sampled_from([-1, -0.5, -0.25, -0.01, 0, 0.25, 1]), min_size=1, max_size=30),
    st.integers(1, 50),
)
def test_mark_and_interval_agree_or_the_words_say_so(d, comparisons):
    differences = alone(d)
    low, high = stats.difference_interval(differences)
    p = difference_p_value(differences)
    text = verdict(differences.mean, (low, high), p, min(1, p * comparisons), len(d), comparisons)
    named = text.startswith(("worse", "better"))
    assert named == (p < 0.05)
    assert (named == (not low <= 0 <= high)) or ";" in text.replace("alone; not after", "")
