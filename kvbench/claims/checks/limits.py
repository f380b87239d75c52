"""Upper limits on the gain of any method: decode steps without KV traffic.

A decode step at small batch is memory-bound: its time is proportional to the bytes of weights and cache. Without KV
traffic only the weights remain. The ratio does not depend on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kvbench import cost
from kvbench.claims.claim import Finding, Reading

Kind = Literal["speedup", "time saved", "throughput gained"]


def gain_limit(
    model: str, prompt: int, new: int, kind: Kind, batches: Sequence[int] = (1,), copies: bool = False
) -> Finding:
    """The limit over dense: first over a baseline that reads K and V once, then over less efficient ones.

    Args:
        model: name of a shape.
        prompt: tokens of the prompt.
        new: decoded tokens; the mean step is used.
        kind: `speedup` as a factor; `time saved` and `throughput gained` in percent.
        batches: batch sizes; less efficient baselines are included for a single batch size only.
        copies: include a baseline that copies its cache at each step, as transformers' DynamicCache does.
    """
    shape = cost.model_shape(model)
    dense = cost.account("dense", shape, prompt=prompt, new=new)
    share = dense.mean_step().read / shape.weights_read()
    cases = {
        "grouped-query flash baseline" + (f", batch {batch}" if len(batches) > 1 else ""): batch
        for batch in batches
    }
    if len(batches) == 1:
        cases["baseline that reads KV once per query head"] = shape.group * batches[0]
        if copies:
            cases["and copies its cache at each step"] = (shape.group + 2) * batches[0]
    gain = {
        "speedup": lambda speedup: speedup,
        "time saved": lambda speedup: 100 * (1 - 1 / speedup),
        "throughput gained": lambda speedup: 100 * (speedup - 1),
    }[kind]
    found = [
        Reading(name=name, value=gain(1 + passes * share), basis="modelled", limit=True)
        for name, passes in cases.items()
    ]
    return Finding(tuple(found))
