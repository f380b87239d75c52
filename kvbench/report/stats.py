"""Intervals of means over clusters, at 95 %.

Scores and their differences have bounds; pseudo-observations at the bounds stand for what n samples may have missed:

- `score_interval`: two zeros and two ones are added (Agresti & Coull 1998, Am. Stat. 52:119), with the variance of the
  values themselves, so that it holds for partial credit and averages as well;
- `difference_interval`: one gain and one loss of everything are added (Bonett & Price 2012, J. Educ. Behav. Stat.
  37:479), with sums in place of counts: for differences of -1, 0 and 1 it is their formula.

Both have a width above 0 for equal values, and move smoothly with every value. KL has no upper bound and is skewed, so
that `kl_interval` is the bootstrap-t (Hall 1988, Ann. Stat. 16:927).
"""

import functools
import math
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvbench.report.clusters import Clusters

LEVEL = 0.95
FLOOR = 0.2
DRAWS = 9_999
FEWEST_FOR_KL = 4
#: raised when intervals or tests of the same cells give other numbers
VERSION = 2
MEAN_INTERVAL = {
    1: "Wilson for 0/1 scores, otherwise bootstrap over samples",
    2: "two zeros and two ones added, Agresti-Coull",
}
DIFFERENCE_INTERVAL = {
    1: "Bonett-Price for 0/1 scores, otherwise paired bootstrap",
    2: "one gain and one loss added, Bonett-Price",
}

_SEED = 20260
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
_TAIL = round((DRAWS + 1) * (1 - LEVEL) / 2) - 1
_BLOCK = 2_000_000  # random numbers in memory at once
_ROUNDING = 1e-9


def score_interval(scores: Clusters) -> tuple[float, float]:
    """Interval of a mean score; NaN without a value.

    With n' = n + 4: centre (sum x + 2) / n', variance (sum x^2 + 2) / n' - centre^2, half width z sqrt(variance / n').
    Clipped to [0, 1].

    Args:
        scores: from 0 to 1.

    Raises:
        ValueError: a score outside its bounds, or strata.
    """
    if scores.weight != 1:
        raise ValueError("a mean score over strata has no interval, only differences have")
    return _with_pseudo_values(scores.values, (0.0, 0.0, 1.0, 1.0), (0.0, 1.0), (0.0, 1.0))


def difference_interval(differences: Clusters) -> tuple[float, float]:
    """Interval of a mean paired difference; NaN without a pair.

    With n' = n + 2: centre sum d / n', variance (sum d^2 + 2 w^2) / n' - centre^2, half width z sqrt(variance / n');
    w is the largest weight, 1 without strata. Clipped to [-1, 1].

    Args:
        differences: from -1 to 1, times their weight.

    Raises:
        ValueError: a difference outside its bounds.
    """
    weight = differences.weight
    return _with_pseudo_values(differences.values, (-weight, weight), (-weight, weight), (-1.0, 1.0))


def _with_pseudo_values(
    x_N: NDArray[np.float64],
    added: tuple[float, ...],
    bounds: tuple[float, float],
    clip: tuple[float, float],
) -> tuple[float, float]:
    if not len(x_N):
        return math.nan, math.nan
    if x_N.min() < bounds[0] - _ROUNDING or x_N.max() > bounds[1] + _ROUNDING:
        raise ValueError(
            f"values from {x_N.min():g} to {x_N.max():g}, allowed: {bounds[0]:g} to {bounds[1]:g}"
        )
    all_N = np.concatenate([x_N, added])
    half = _Z * math.sqrt(all_N.var() / len(all_N))
    return max(clip[0], float(all_N.mean()) - half), min(clip[1], float(all_N.mean()) + half)


def kl_interval(values: Clusters) -> tuple[float, float]:
    """Interval of a mean KL, not below 0; NaN for fewer than four values or equal ones.

    The upper end is infinite where so many resamples are equal values that nothing bounds it.
    """
    low, high = kl_difference_interval(values)
    return float(np.maximum(0.0, low)), high  # NaN stays NaN


def kl_difference_interval(differences: Clusters) -> tuple[float, float]:
    """Interval of a mean paired difference of KL, as `kl_interval` but of either sign."""
    if not _has_spread(differences):
        return math.nan, math.nan
    t_R = np.sort(_studentised(differences.values))
    error = _standard_error(differences.values)
    # the order statistics beyond which the p-values are below half of 0.05
    low_t, high_t = t_R[_TAIL - 1], t_R[-_TAIL]
    return float(differences.mean - high_t * error), float(differences.mean - low_t * error)


def kl_p_value(values: Clusters, margin: float) -> float:
    """One-sided p-value of "the mean KL is `margin` or more", by the bootstrap-t of `kl_interval`.

    Below 0.025 exactly where the 95 % interval ends below the margin. NaN as there.
    """
    if not _has_spread(values):
        return math.nan
    t_R = _studentised(values.values)
    return float(
        (1 + (t_R <= (values.mean - margin) / _standard_error(values.values)).sum()) / (1 + len(t_R))
    )


def kl_difference_p_value(differences: Clusters) -> float:
    """Two-sided p-value of "the mean paired difference of KL is 0", by the bootstrap-t; NaN as `kl_interval`."""
    if not _has_spread(differences):
        return math.nan
    t_R = _studentised(differences.values)
    observed = differences.mean / _standard_error(differences.values)
    tails = [(1 + beyond.sum()) / (1 + len(t_R)) for beyond in (t_R <= observed, t_R >= observed)]
    return float(min(1.0, 2 * min(tails)))


def samples_needed(margin: float, *, changed: float = 0.0, delta: float = 0.0) -> int | None:
    """Number of samples from which `difference_interval` shows that the mean loss is less than a margin.

    Args:
        margin: largest loss that is allowed, above 0.
        changed: expected mean square of a difference, for 0/1 scores the share of samples that change; never less than
            delta^2.
        delta: expected mean difference, below 0 for a loss.

    Returns:
        None where no number is enough, as the expected loss is not less than the margin.

    Raises:
        ValueError: a margin that is not above 0.
    """
    if margin <= 0:
        raise ValueError(f"margin {margin:g}: allowed are numbers above 0")
    if delta <= -margin:
        return None
    square = max(changed, delta**2)

    def fits(n: int) -> bool:
        centre = n * delta / (n + 2)
        return centre - _Z * math.sqrt(((n * square + 2) / (n + 2) - centre**2) / (n + 2)) > -margin

    enough = 1
    while not fits(enough):
        enough *= 2
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if fits(middle) else (middle, enough)
    return enough


def former(versions: pd.Series) -> str:
    """` by the former method` where some rows have intervals of an earlier version, for captions."""
    return "" if (versions == VERSION).all() else " by the former method"


def _has_spread(clusters: Clusters) -> bool:
    return len(clusters) >= FEWEST_FOR_KL and float(np.ptp(clusters.values)) > 0


def _standard_error(x_N: NDArray[np.float64]) -> float:
    return float(x_N.std(ddof=1) / math.sqrt(len(x_N)))


def _studentised(x_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """(mean* - mean) / standard error* of the resamples; infinite for equal values, the same for the same values."""
    return _resampled(tuple(x_N.tolist()))


# an interval and its p-value ask for the same resamples
@functools.lru_cache(maxsize=2)
def _resampled(values: tuple[float, ...]) -> NDArray[np.float64]:
    x_N = np.array(values)
    n, rng = len(x_N), np.random.default_rng(_SEED)
    parts = []
    for rows in _blocks(DRAWS, n):
        drawn_RN = x_N[rng.integers(n, size=(rows, n), dtype=np.int32)]
        away_R, error_R = drawn_RN.mean(axis=1) - x_N.mean(), drawn_RN.std(axis=1, ddof=1) / math.sqrt(n)
        flat_R = np.ptp(drawn_RN, axis=1) == 0
        t_R = np.where(flat_R, np.copysign(np.inf, away_R), away_R / np.where(flat_R, 1.0, error_R))
        parts.append(np.where(away_R == 0, 0.0, t_R))
    return np.concatenate(parts)


def _blocks(draws: int, n: int) -> list[int]:
    size = max(1, min(draws, _BLOCK // n))
    return [min(size, draws - start) for start in range(0, draws, size)]
