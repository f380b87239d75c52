"""Measures this machine's memory and arithmetic: `kvbench doctor --bandwidth`."""

from __future__ import annotations

import datetime
import os
from typing import Any

import torch
import yaml

from kvbench.config.typed import build
from kvbench.cost.hardware import GROUP, MIB, Hardware
from kvbench.kernels.clock import ColdClock
from kvbench.runs import provenance

NAME = "this_machine"
REPEATS = 15
SIDE = {"cpu": 2048, "cuda": 8192}  # rows of the square matrices


@torch.inference_mode()
def measure() -> Hardware:
    """Time memory reads and bf16 products on the GPU if there is one, else on the CPU; takes about 15 seconds.

    Takes medians of reading 256 MiB of uncached memory and of multiplying square matrices of random numbers.
    """
    device = place()
    clock = ColdClock(device, REPEATS)
    read = clock.read_bandwidth()
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    _, median, _ = clock.percentiles(lambda: a @ b)
    what = (
        f"kvbench doctor --bandwidth, torch {torch.__version__}: median of {REPEATS} reads of 256 MiB and of as many "
        f"bf16 products of {side} x {side} matrices"
    )
    return build(
        Hardware,
        {
            "name": NAME,
            "title": provenance.device_name(device),
            "memory_mib": _memory(device) // MIB,
            "memory_source": "M",
            "bandwidth_gb_s": {"attainable": round(read, 1), "source": "M"},
            "tflops": {"attainable": round(2 * side**3 / median / 1e9, 3), "source": "M"},
            "sources": {"M": {"seen": datetime.date.today(), "what": what}},
        },
    )


def place() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def description(device: Hardware) -> str:
    """A measured device as YAML, for the user's conf/hardware."""
    rates = {
        name: {"attainable": rate.attainable, "source": rate.source}
        for name, rate in (("bandwidth_gb_s", device.bandwidth_gb_s), ("tflops", device.tflops))
    }
    data: dict[str, Any] = {
        "title": device.title, "memory_mib": int(device.memory_mib), "memory_source": device.memory_source, **rates,
        "sources": device.sources,
    }  # fmt: skip
    head = (
        f"# save as FOLDER/{GROUP}/{NAME}.yaml, then: kvbench run experiment=roofline --config-dir FOLDER "
        f"devices=[{NAME}]\n"
        "# rent: {usd_per_hour: ..., provider: ..., source: P} adds a price, with P under sources\n"
    )
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
