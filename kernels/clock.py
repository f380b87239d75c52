"""Clocks: milliseconds of one call, with or without a cold cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch


class Clock(Protocol):
    """Measures one call at a time."""

    def milliseconds(self, call: Callable[[], object]) -> float:
        """Milliseconds until the device has finished the call's work."""
        ...


class CpuClock:
    """Wall-clock time."""

    def milliseconds(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)


class CudaClock:
    """Time between two CUDA events."""

    def __init__(self) -> None:
        self.start, self.stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def milliseconds(self, call: Callable[[], object]) -> float:
        self.start.record()
        call()
        self.stop.record()
        self.stop.synchronize()
        return self.start.elapsed_time(self.stop)


def clock_for(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock() if device.type == "cuda" else CpuClock()


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class ColdClock:
    """Times calls with a cold cache.

    Args:
        device: where the calls run.
        repeats: measurements per call.
    """

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.repeats, self.clock = repeats, clock_for(device)
        # larger than any cache; random, because identical pages may share one page of physical memory
        self.flush, self.cold = (torch.rand(64 << 20, device=device) for _ in range(2))

    def read_bandwidth(self) -> float:
        """Read bandwidth of memory in GB/s."""
        return self._bandwidth(self._times(self.cold.sum)[0])

    def percentiles(self, call: Callable[[], object]) -> tuple[float, float, float]:
        """p20, median and p80 in milliseconds."""
        return _percentiles(self._times(call)[0])

    def percentiles_and_bandwidth(
        self, call: Callable[[], object]
    ) -> tuple[tuple[float, float, float], float]:
        """p20, median and p80, and the read bandwidth in GB/s.

        Both are measured in turns, because the bandwidth of a shared machine drifts within seconds.
        """
        reads, times = self._times(self.cold.sum, call)
        return _percentiles(times), self._bandwidth(reads)

    def _bandwidth(self, times: list[float]) -> float:
        return self.cold.numel() * 4 / float(np.median(times)) / 1e6

    def _times(self, *calls: Callable[[], object]) -> list[list[float]]:
        """Milliseconds of each call, in turns, with a cold cache."""
        for call in calls * 3:
            call()
        turns = [[self._cold(call) for call in calls] for _ in range(self.repeats)]
        return [list(times) for times in zip(*turns, strict=True)]

    def _cold(self, call: Callable[[], object]) -> float:
        self.flush.add_(1)
        return self.clock.milliseconds(call)


def _percentiles(times: list[float]) -> tuple[float, float, float]:
    p20, median, p80 = np.percentile(times, [20, 50, 80])
    return float(p20), float(median), float(p80)
