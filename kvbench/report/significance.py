"""Paired tests over clusters, and what a family of them can show at all.

- `difference_p_value`: exact McNemar for 0/1 scores (McNemar 1947, Psychometrika 12:153), otherwise the sign-flip
  permutation test (Fisher 1935, The Design of Experiments, section 21), of which it is the special case. The hypothesis
  is that a sample is as likely to gain as to lose by the same amount.
- `holm`: Holm (1979, Scand. J. Stat. 6:65). The step-down min-P of Westfall & Young (1993, Resampling-Based Multiple
  Testing) by joint sign flips is not used: all differences share dense, so that their joint law is not symmetric
  where no method does anything, and simulated error rates pass the level.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvbench.config.text import counted
from kvbench.report.clusters import Clusters

ALPHA = 0.05

_HALVED = 36  # maximum non-zero differences for exact enumeration: 2^18 sums per half
_SHARES = 240  # whole multiples of 1/k of the largest difference are found up to this k
_CELLS = 1_000_000  # grid cells for others


def difference_p_value(differences: Clusters) -> float:
    """Two-sided p-value of "the mean paired difference is 0", over all 2^n sign patterns; NaN without a pair.

    Exact where all differences have one size (McNemar), up to 36 non-zero ones, and beyond where they are whole
    multiples of 1/k of the largest, k up to 240, such as shares of the answers found. Otherwise they are rounded to a
    grid, and sums that rounding could have lifted count as reached: p is never too small, and too large by at most the
    chance of a sum between the observed one and that one less the rounding error of `_grid`.
    """
    if not len(differences):
        return math.nan
    d_N = differences.values[differences.values != 0]
    sizes_N = np.abs(d_N)
    # sums of the same terms in another order differ in the last digits
    observed = abs(d_N.sum()) - 1e-9 * sizes_N.sum()
    if observed <= 0:
        return 1.0
    if np.ptp(sizes_N) <= 1e-12 * sizes_N.max():
        return _mcnemar(int((d_N > 0).sum()), int((d_N < 0).sum()))
    # the other tail has the same patterns with all signs flipped
    return min(1.0, 2 * (_tail_in_halves(sizes_N, observed) if len(d_N) <= _HALVED else _tail_on_grid(d_N)))


def _mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided McNemar test: a binomial test of the discordant pairs at 1/2."""
    discordant = wins + losses
    tail = sum(math.comb(discordant, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def _tail_in_halves(sizes_N: NDArray[np.float64], reached: float) -> float:
    """Share of the sign patterns whose sum is `reached` or more, from the sums of either half of the terms."""
    first_P, second_P = (_signed_sums(half_N) for half_N in (sizes_N[::2], sizes_N[1::2]))
    # searching in ascending order is several times faster
    short = np.searchsorted(np.sort(second_P), np.sort(reached - first_P))
    return float((len(second_P) - short).sum() / 2.0 ** len(sizes_N))


def _signed_sums(sizes_N: NDArray[np.float64]) -> NDArray[np.float64]:
    sums_P = np.zeros(1)
    for size in sizes_N:
        sums_P = np.concatenate([sums_P + size, sums_P - size])
    return sums_P


def _tail_on_grid(d_N: NDArray[np.float64]) -> float:
    """Share of the sign patterns whose sum is that of the terms or more, by the chance of each sum on a grid."""
    steps_N, observed, rounding_error = _grid(d_N)
    chance_S = np.ones(1)  # of each sum from -total to total in steps of 2, one term after the other
    for step in np.sort(steps_N):
        lower_S, upper_S = (np.pad(chance_S, pad) for pad in ((0, step), (step, 0)))
        chance_S = (lower_S + upper_S) / 2
    total = int(steps_N.sum())
    first = math.ceil((observed - rounding_error + total) / 2 - 1e-6)
    return float(chance_S[max(0, first) :].sum())


def _grid(d_N: NDArray[np.float64]) -> tuple[NDArray[np.int64], float, float]:
    """Sizes of the terms in whole steps, the sum in steps, and by how many steps a sum may be off.

    A sum is off by no more than the errors of all sizes together.
    """
    parts_N = np.abs(d_N) / np.abs(d_N).max()
    observed = abs(d_N.sum()) / np.abs(d_N).max()
    multiples_KN = np.arange(1, _SHARES + 1)[:, None] * parts_N
    fits_K = (np.abs(multiples_KN - multiples_KN.round()) < 1e-6).all(axis=1)
    if fits_K.any():
        per_unit = int(np.argmax(fits_K)) + 1
        return (per_unit * parts_N).round().astype(np.int64), observed * per_unit, 1e-3
    per_unit = max(_SHARES, int(_CELLS / parts_N.sum()))
    steps_N = (per_unit * parts_N).round()
    return steps_N.astype(np.int64), observed * per_unit, float(np.abs(per_unit * parts_N - steps_N).sum())


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm-adjusted p-values of one family; NaN stays NaN and does not count."""
    p_N = np.asarray(p_values, dtype=float)
    adjusted_N = np.full_like(p_N, np.nan)
    order = np.argsort(p_N)[: np.isfinite(p_N).sum()]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    adjusted_N[order] = np.minimum(1.0, np.maximum.accumulate(p_N[order] * factors))
    return adjusted_N


def fewest_changes(comparisons: int) -> int:
    """Number of samples that must change, all for the worse or all for the better, before any p passes Holm.

    The smallest p of k changed samples is 2 / 2^k, the first threshold of Holm's procedure `ALPHA` / comparisons.

    Args:
        comparisons: size of the family, 1 or more.
    """
    k = 1
    while 2.0 ** (1 - k) * comparisons >= ALPHA:
        k += 1
    return k


def power(comparisons: int, n: int) -> str:
    """What a mark of a table stands for, and whether any is possible, in words.

    Args:
        comparisons: size of the family.
        n: largest number of pairs in it.
    """
    if not comparisons:
        return "No row is compared."
    needed = fewest_changes(comparisons)
    text = (
        f"A mark: p < {ALPHA} after Holm's correction over {counted(comparisons, 'comparison')}, for which at least "
        f"{needed} of {n} samples must change, all in one direction"
    )
    return f"{text}: here none is possible, however large a difference." if needed > n else f"{text}."


def verdict(
    delta: float, interval: tuple[float, float], p_value: float, p_adjusted: float, n: int, comparisons: int
) -> str:
    """A paired comparison at level 0.05 in words.

    The test asks whether anything changed, the interval how large the mean over all such samples may be: it allows for
    rare changes that n samples miss, and the test does not. Where they disagree the words say so.

    Args:
        delta: mean difference.
        interval: of `stats.difference_interval`.
        p_value: of the test alone.
        p_adjusted: after Holm; NaN for a comparison outside the family.
        n: number of pairs.
        comparisons: size of the family.
    """
    if not n:
        return "no pair to compare"
    low, high = interval
    holds_0 = low <= 0 <= high
    direction, rare = ("worse", "gains") if delta < 0 else ("better", "losses")
    doubt = f"; the interval, which allows for rare {rare}, holds 0" if holds_0 else ""
    if p_adjusted < ALPHA:
        return f"{direction} by {abs(delta):.2f}{doubt}"
    if p_value < ALPHA:
        return f"{direction}: p < {ALPHA} alone; not after Holm over {comparisons}{doubt}"
    return f"no difference detectable at n = {n}" + ("" if holds_0 else "; the interval alone leaves out 0")
