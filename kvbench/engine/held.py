"""What a row holds step by step: the proof that it was compressed while decoding, and by how much."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Trace:
    """What a row held in one lane, by decode step `[S]`.

    Attributes:
        heads: KV heads of the lane.
        during: tokens per KV head that the step could read, its own included.
        after: tokens per KV head that it left.
        size: bytes that it left, auxiliary data included.
    """

    heads: int
    during: NDArray[np.int64]
    after: NDArray[np.int64]
    size: NDArray[np.int64]


@dataclass(frozen=True)
class Held:
    """What a row held over its decode steps, question tokens apart.

    Attributes:
        mean: tokens after a step, mean over steps, layers and KV heads.
        peak: most tokens of any KV head while a step ran.
        end: tokens after the last step, mean over layers and KV heads.
        bytes_mean: bytes after a step, mean over steps.
        bytes_peak: the most of these.
        drops: steps after which tokens were dropped.
        dropped: tokens dropped, mean over layers and KV heads.
        first_drop: number of the first such step, from 1; None without one.
        after_first_drop: share of the steps that came behind it.
    """

    mean: float
    peak: int
    end: float
    bytes_mean: float
    bytes_peak: int
    drops: int
    dropped: float
    first_drop: int | None
    after_first_drop: float

    @classmethod
    def of(cls, traces: Iterable[Trace]) -> Held | None:
        """From the lanes of all layers; None without a decode step."""
        traces = list(traces)
        heads = sum(trace.heads for trace in traces)
        if not heads or not len(traces[0].after):
            return None
        during = np.sum([trace.during * trace.heads for trace in traces], axis=0)
        after = np.sum([trace.after * trace.heads for trace in traces], axis=0)
        size = np.sum([trace.size for trace in traces], axis=0)
        gone = during - after
        (at,) = np.nonzero(gone)
        steps = len(after)
        return cls(
            mean=float(after.sum()) / (steps * heads),
            peak=max(int(trace.during.max()) for trace in traces),
            end=float(after[-1]) / heads,
            bytes_mean=float(size.sum()) / steps,
            bytes_peak=int(size.max()),
            drops=len(at),
            dropped=float(gone.sum()) / heads,
            first_drop=int(at[0]) + 1 if len(at) else None,
            after_first_drop=float(steps - 1 - at[0]) / steps if len(at) else 0.0,
        )
