"""Simulated coverage of the intervals, and error rates of families of tests.

Run as a script it writes results/statistics; `tests/test_report/test_simulations.py` repeats it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from scipy.stats import binom

from kvbench.report import Clusters, significance, stats

RESULTS = Path(__file__).parents[2] / "results" / "statistics"
SIZES = (4, 8, 20, 50, 200)
DRAWS = 1000
FEW = 200  # draws of what is dear: the bootstrap-t

Rng = np.random.Generator
Draw = Callable[[Rng, int], NDArray[np.float64]]


def _pairs(gain: float, loss: float) -> tuple[Draw, float]:
    def draw(rng: Rng, n: int) -> NDArray[np.float64]:
        return rng.choice([1.0, -1.0, 0.0], n, p=[gain, loss, 1 - gain - loss])

    return draw, gain - loss


def _lost_parts(chance: float, part: float) -> tuple[Draw, float]:
    return lambda rng, n: -part * (rng.random(n) < chance), -part * chance


def _means(of: int, gain: float, loss: float) -> tuple[Draw, float]:
    one, mean = _pairs(gain, loss)
    return lambda rng, n: one(rng, n * of).reshape(n, of).mean(axis=1), mean


def _quarters(before: float, after: float) -> tuple[Draw, float]:
    def draw(rng: Rng, n: int) -> NDArray[np.float64]:
        return (rng.binomial(4, after, n) - rng.binomial(4, before, n)) / 4.0

    return draw, after - before


DIFFERENCES = {
    "no change": _pairs(0, 0),
    "1 % lost": _pairs(0, 0.01),
    "5 % lost": _pairs(0, 0.05),
    "20 % lost": _pairs(0, 0.2),
    "60 % lost": _pairs(0, 0.6),
    "10 % lost, 10 % gained": _pairs(0.1, 0.1),
    "30 % lost, 10 % gained": _pairs(0.1, 0.3),
    "a quarter lost by half": _lost_parts(0.5, 0.25),
    "a quarter lost by all": _lost_parts(1, 0.25),
    "0.01 lost by half": _lost_parts(0.5, 0.01),
    "quarters, 0.9 to 0.7": _quarters(0.9, 0.7),
    "quarters, 0.5 to 0.5": _quarters(0.5, 0.5),
    "four turns, 20 % lost": _means(4, 0, 0.2),
    "three seeds, 10 % either way": _means(3, 0.1, 0.1),
}
SCORES: dict[str, tuple[Draw, float]] = {
    f"right in {share:g}": (lambda rng, n, share=share: (rng.random(n) < share) * 1.0, share)
    for share in (0.02, 0.1, 0.5, 0.9, 1.0)
}
SCORES["quarters of 0.7"] = (lambda rng, n: rng.binomial(4, 0.7, n) / 4, 0.7)
SCORES["quarters of 0.95"] = (lambda rng, n: rng.binomial(4, 0.95, n) / 4, 0.95)
SCORES["always 0.5"] = (lambda rng, n: np.full(n, 0.5), 0.5)
SCORES["f1 near 0.8"] = (lambda rng, n: rng.beta(8, 2, n), 0.8)
KLS: dict[str, tuple[Draw, float]] = {
    f"lognormal, sigma {s:g}": (lambda rng, n, s=s: rng.lognormal(-(s**2) / 2, s, n), 1.0)
    for s in (0.5, 1, 1.5, 2)
}
KLS["exponential"] = (lambda rng, n: rng.exponential(1, n), 1.0)


def percentile(values: Clusters) -> tuple[float, float]:
    """The percentile bootstrap, which the intervals replace."""
    n, rng = len(values), np.random.default_rng(1)
    means = values.values[rng.integers(n, size=(2000, n))].mean(axis=1)
    return tuple(np.quantile(means, [0.025, 0.975]))


def coverage() -> pd.DataFrame:
    """Share of the samples of n clusters whose 95 % interval holds the true mean, and the mean width."""
    rows = []
    kinds = {
        "difference": (DIFFERENCES, stats.difference_interval, DRAWS),
        "score": (SCORES, stats.score_interval, DRAWS),
        "KL": (KLS, stats.kl_interval, FEW),
    }
    for kind, (laws, interval, draws) in kinds.items():
        for law, (draw, mean) in laws.items():
            for n in SIZES:
                rng = np.random.default_rng([n, draws])
                samples = [Clusters(draw(rng, n), range(n)) for _ in range(draws)]
                found = np.array([interval(sample) for sample in samples])
                old = np.array([percentile(sample) for sample in samples[:FEW]])
                held, held_before = (
                    ((ends[:, 0] <= mean + 1e-9) & (ends[:, 1] >= mean - 1e-9)).mean()
                    for ends in (found, old)
                )
                width = float(np.median(found[:, 1] - found[:, 0]))
                rows.append((kind, law, n, round(held, 4), round(held_before, 4), round(width, 4)))
    return pd.DataFrame(rows, columns=["kind", "law", "n", "coverage", "percentile_bootstrap", "width"])


def _step_down_min_p(
    d_NM: NDArray[np.float64], p_of: NDArray[np.float64], rng: Rng, draws: int = 500
) -> NDArray:
    """Westfall and Young's step-down min-P of 0/1 scores, the signs of a sample flipped for all methods together."""
    changed_M, wins_M = np.abs(d_NM).sum(axis=0).astype(int), (d_NM > 0).sum(axis=0)
    p_M = p_of[changed_M, wins_M]
    flips_RN = rng.choice([-1, 1], (draws, len(d_NM)))
    p_RM = p_of[changed_M, ((flips_RN @ d_NM + changed_M) / 2).astype(int)]
    order = np.argsort(p_M, kind="stable")
    least_RM = np.minimum.accumulate(p_RM[:, order[::-1]], axis=1)[:, ::-1]
    adjusted_M = np.empty_like(p_M)
    share_M = (1 + (least_RM <= p_M[order] + 1e-12).sum(axis=0)) / (draws + 1)
    adjusted_M[order] = np.maximum.accumulate(share_M)
    return adjusted_M


def families() -> pd.DataFrame:
    """Holm against step-down min-P: chance of any false mark, and share of true drops found.

    Dense and every method answer right with the same chance, independently; with drops, half of the methods lose half.
    """
    rows = []
    for right in (0.5, 0.8, 0.9):
        for n, methods in ((8, 42), (20, 42), (20, 172), (50, 42)):
            p_of = np.ones((n + 1, n + 1))
            for k in range(n + 1):
                wins = np.arange(k + 1)
                p_of[k, : k + 1] = np.minimum(1, 2 * binom.cdf(np.minimum(wins, k - wins), k, 0.5))
            for dropped in (0, methods // 2):
                rng, marked, found = np.random.default_rng([n, methods, dropped]), [], []
                for _ in range(1000):
                    chance_M = np.where(np.arange(methods) < dropped, right / 2, right)
                    d_NM = (rng.random((n, methods)) < chance_M) * 1.0 - (rng.random((n, 1)) < right)
                    changed, wins = np.abs(d_NM).sum(axis=0).astype(int), (d_NM > 0).sum(axis=0)
                    both = (significance.holm(p_of[changed, wins]), _step_down_min_p(d_NM, p_of, rng))
                    marks = np.array(both) < significance.ALPHA
                    marked.append(marks[:, dropped:].any(axis=1))
                    found.append(marks[:, :dropped].mean(axis=1) if dropped else [np.nan, np.nan])
                error, power = np.mean(marked, axis=0), np.mean(found, axis=0)
                rows.append((right, n, methods, dropped, *error.round(4), *power.round(4)))
    names = ["dense_right", "n", "methods", "dropped"]
    return pd.DataFrame(rows, columns=[*names, "error_holm", "error_min_p", "found_holm", "found_min_p"])


def figure(frame: pd.DataFrame, path: Path) -> None:
    """Coverage by n, one panel per kind, a line per law."""
    drawing, all_axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained", sharey=True)
    for axes, (kind, rows) in zip(all_axes, frame.groupby("kind", sort=False), strict=True):
        for _, law in rows.groupby("law", sort=False):
            axes.plot(law["n"], law["percentile_bootstrap"], color="#D55E00", linewidth=0.8, alpha=0.5)
            axes.plot(law["n"], law["coverage"], color="#0072B2", linewidth=0.8, marker=".")
        axes.axhline(0.95, color="#222222", linewidth=0.8, linestyle=":")
        axes.set(title=kind, xscale="log", xlabel="samples")
        axes.set_xticks(SIZES, [str(n) for n in SIZES])
        axes.minorticks_off()
    all_axes[0].set(ylabel="coverage of 95 % intervals", ylim=(0.3, 1.01))
    drawing.suptitle("blue: the intervals in use; orange: percentile bootstrap; a line per law", fontsize=9)
    drawing.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(drawing)


def main() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    frame = coverage()
    frame.to_csv(RESULTS / "coverage.csv", index=False)
    figure(frame, RESULTS / "coverage.png")
    families().to_csv(RESULTS / "families.csv", index=False)


if __name__ == "__main__":
    main()
