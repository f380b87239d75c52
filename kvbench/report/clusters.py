"""One value per independent unit, the only thing that statistics are made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

# what is left of turns that cancel
_ROUNDING = 1e-12


@dataclass(frozen=True, init=False, eq=False)
class Clusters:
    """The mean of each cluster: of the turns of a conversation, or of a sample's seeds and repeats.

    Values of one cluster are not independent, so that intervals and tests count clusters. There is no other way to
    build this than from rows with the name of their cluster, see `names`.

    Attributes:
        values: `[n]`, in ascending order, so that nothing depends on the order of the rows.
        weight: largest weight of a value; 1 without strata.
    """

    values: NDArray[np.float64]
    weight: float

    def __init__(
        self,
        values: ArrayLike,
        names: Sequence[Hashable] | pd.Series,
        strata: Sequence[Hashable] | pd.Series | None = None,
    ) -> None:
        """Averages rows by cluster.

        Args:
            values: `[rows]`; NaN is no value.
            names: `[rows]`, the name of each row's cluster; a name is never shared by two tasks.
            strata: `[rows]`, the task of each row where tasks count alike however many samples each has: values are
                then weighted so that their mean is the mean over tasks.

        Raises:
            ValueError: a row without a name, a cluster in two strata, or another number of values than names.
        """
        groups: dict[Hashable, list[float]] = {}
        stratum_of: dict[Hashable, Hashable] = {}
        all_strata = [0] * len(names) if strata is None else strata
        for value, name, stratum in zip(np.asarray(values, dtype=float), names, all_strata, strict=True):
            if name is None or name != name:  # NaN differs from itself
                raise ValueError("a value without the name of its cluster")
            if stratum_of.setdefault(name, stratum) != stratum:
                raise ValueError(f"cluster {name} is in two strata")
            if not math.isnan(value):
                groups.setdefault(name, []).append(value)
        sizes = Counter(stratum_of[name] for name in groups)
        means_N = np.array([math.fsum(group) / len(group) for group in groups.values()])
        weights_N = np.array([len(groups) / (len(sizes) * sizes[stratum_of[name]]) for name in groups])
        means_N[np.abs(means_N) < _ROUNDING] = 0.0
        object.__setattr__(self, "values", np.sort(means_N * weights_N))
        object.__setattr__(self, "weight", float(weights_N.max(initial=0)) or 1.0)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over clusters; NaN without any."""
        return float(self.values.mean()) if len(self) else float("nan")

    @property
    def different(self) -> int:
        """Number of clusters whose value is not 0."""
        return int((self.values != 0).sum())


def names(rows: pd.DataFrame) -> list[tuple[Any, ...]]:
    """The name of each row's cluster: a conversation, the document of repeats, otherwise the sample, of all seeds.

    A sample is its `sample_hash`, in which equal prompts of a file have their number. Prompts that were made
    from the same filler text are separate samples: the filler is fixed, and intervals are about further questions
    in it, not about other fillers.

    Args:
        rows: with `task`, `length`, `seed`, `sample_hash`, and where there are `meta` and `cell`.
    """
    count = len(rows)
    columns = {
        column: rows[column].tolist() if column in rows else [None] * count
        for column in ("task", "length", "seed", "sample_hash", "meta", "cell")
    }
    return [_name(*row) for row in zip(*columns.values(), strict=True)]


def _name(
    task: str, length: int, seed: object, sample: object, meta: object, cell: object
) -> tuple[Any, ...]:
    facts = meta if isinstance(meta, dict) else {}
    if "turn" in facts and "line" in facts:
        return task, length, "line", facts["line"]
    if "turn" in facts and "conversation" in facts:
        return task, length, "conversation", seed, facts["conversation"]
    if "document" in facts:
        return task, length, "document", facts["document"]
    if isinstance(sample, str) and sample:
        return task, length, "sample", sample
    return task, length, "cell", cell
