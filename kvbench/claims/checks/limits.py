"""Upper limits on the gain of any method: decode steps without KV traffic.

A decode step at small batch is memory-bound: its time is proportional to the bytes of weights and cache. Without KV
traffic only the weights remain. The ratio does not depend on the device, nor on tensor parallelism.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kvbench import cost
from kvbench.claims.claim import Finding, Reading

Kind = Literal["speedup", "time saved"]
#: bits per weight as stored: 4-bit weights have a scale of 8 bits per 16 of them (NVFP4)
STORED = {16: 16.0, 8: 8.0, 4: 4.5}


def gain_limit(
    model: str, prompt: int, new: int, kind: Kind, batch: int = 1, copies: bool = False,
    bits: Sequence[int] = (16,), batches: Sequence[int] = (),
) -> Finding:  # fmt: skip
    """The limit over dense: first over a baseline that reads K and V once, then over other settings.

    Args:
        model: name of a shape.
        prompt: tokens of the prompt.
        new: decoded tokens; the mean step is used.
        kind: `speedup` as a factor; `time saved` in percent.
        batch: batch size of the plain reading.
        copies: include a baseline that copies its cache at each step, as transformers' DynamicCache does.
        bits: sizes of a weight, of `STORED`; the first is the plain reading.
        batches: further batch sizes.
    """
    shape = cost.model_shape(model)
    share = _share(shape, prompt, new)
    plain = "grouped-query flash baseline" if shape.group > 1 else "flash baseline"
    settings = len(bits) > 1 or bool(batches)
    cases = {
        f"{plain}, batch {batch}" if settings or batch > 1 else plain: batch * share * 16 / STORED[bits[0]]
    }
    cases |= {
        f"{plain}, batch {batch}, {size}-bit weights": batch * share * 16 / STORED[size] for size in bits[1:]
    }
    cases |= {f"{plain}, batch {size}": size * share for size in batches}
    if not settings and shape.group > 1:
        cases["baseline that reads KV once per query head"] = shape.group * batch * share
    if copies:
        # read and written once more, by a baseline that expands K and V to query heads
        cases["and copies its cache at each step" if shape.group > 1 else
              "baseline that copies its cache at each step"] = (shape.group + 2) * batch * share  # fmt: skip
    found = [
        Reading(name=name, value=_gain(traffic, kind), basis="modelled", limit=True)
        for name, traffic in cases.items()
    ]
    return Finding(tuple(found))


def least_batches(rows: Sequence[Mapping[str, Any]]) -> Finding:
    """Whether printed speed-ups are within the limit at batch 1, and the smallest batch at which all of them are.

    Args:
        rows: `model` (a shape), `prompt`, `new` and the `speedups` printed for it.
    """
    needed, notes = [], []
    for row in rows:
        share = _share(cost.model_shape(row["model"]), row["prompt"], row["new"])
        for speedup in row["speedups"]:
            least = [max(1, math.ceil((speedup - 1) * size / 16 / share)) for size in STORED.values()]
            needed.append(least)
            notes.append(f"{row['model']} {row['prompt']} {speedup}x: {'/'.join(map(str, least))}")
    first = sum(least[0] == 1 for least in needed)
    found = [
        Reading(name=f"{first} of {len(needed)} are possible at batch 1", value=float(first == len(needed)),
                basis="modelled"),
        Reading(name=f"all are from batch {max(n[0] for n in needed)} on", value=1.0, basis="modelled"),
    ]  # fmt: skip
    return Finding(
        tuple(found), f"least batch at {'/'.join(map(str, STORED))}-bit weights: {'; '.join(notes)}"
    )


def bandwidth_to_compute(lower: str, higher: str) -> Finding:
    """Whether one device has the lower ratio of memory bandwidth to dense 16-bit operations: 1 or 0.

    Args:
        lower: name of the device said to have the lower ratio.
        higher: the other device.
    """
    devices = [cost.hardware(name) for name in (lower, higher)]
    ratios = [1000 * device.bandwidth(peak=True) / device.flops(peak=True) for device in devices]
    name = ", ".join(
        f"{name} {ratio:.2f} bytes per 1,000 operations"
        for name, ratio in zip((lower, higher), ratios, strict=True)
    )
    return Finding((Reading(name=name, value=float(ratios[0] < ratios[1]), basis="formula"),))


def _share(shape: cost.ModelShape, prompt: int, new: int) -> float:
    """KV bytes of the mean step of one sequence against the bytes of the weights."""
    return cost.account("dense", shape, prompt=prompt, new=new).mean_step().read / shape.weights_read()


def _gain(traffic: float, kind: Kind) -> float:
    return 1 + traffic if kind == "speedup" else 100 * (1 - 1 / (1 + traffic))
