"""Provenance of a number: versions, device, peak memory."""

import sys

import pytest
import torch

from kvbench.runs import provenance

CPU = torch.device("cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory can be reset on Linux only")
def test_peak_memory_is_that_since_the_last_reset():
    block = torch.ones(50_000_000)  # 200 MB
    high = provenance.peak_bytes(CPU)
    del block
    provenance.reset_peak(CPU)
    low = provenance.peak_bytes(CPU)
    assert high - low > 150_000_000
    torch.ones(50_000_000)
    assert provenance.peak_bytes(CPU) - low > 150_000_000


def test_versions_and_device_are_named():
    assert {"kvbench", "torch", "transformers", "python"} <= set(provenance.versions())
    assert provenance.device_name(CPU).startswith("CPU ")
