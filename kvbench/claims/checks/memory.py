"""Resident bytes and bytes read of methods, from the cost model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from kvbench import cost
from kvbench.claims.claim import Finding, Reading
from kvbench.formats.kivi import Quantised

Method = str | Mapping[str, Any]


def compression(
    model: str, method: Method, prompt: int, new: int, budget: int, of: Literal["traffic", "memory"]
) -> Finding:
    """Compression of bytes read per decode step (traffic) or of resident bytes (memory); `of` picks the main one."""
    shape = cost.model_shape(model)
    dense = cost.account("dense", shape, prompt=prompt, new=new)
    use = cost.account(method, shape, prompt=prompt, new=new, tokens=budget)
    ratios = {
        "traffic": dense.step.read / use.step.read,
        "memory": dense.resident_end / use.resident_end,
    }
    names = {"traffic": "bytes read per decode step", "memory": "bytes resident"}
    found = [
        Reading(name=names[what], value=ratios[what], basis="modelled", beside=what != of)
        for what in sorted(ratios, key=lambda what: what != of)
    ]
    return Finding(tuple(found))


def storage(model: str, method: Method, prompt: int, new: int, budget: int) -> Finding:
    """Storage relative to full KV: in bytes, and with each K-sized auxiliary tensor counted as a full KV unit."""
    shape = cost.model_shape(model)
    use = cost.account(method, shape, prompt=prompt, new=new, tokens=budget)
    dense = shape.kv_bytes(prompt + new)
    kept = shape.kv_bytes(1) * (use.kept + new)
    auxiliary = use.resident_end - kept
    return Finding(
        (
            Reading(name="bytes", value=use.resident_end / dense, basis="modelled"),
            Reading(
                name="auxiliary K-sized tensors counted twice",
                value=(kept + 2 * auxiliary) / dense,
                basis="modelled",
            ),
        )
    )


def memory_saving(model: str, method: Method, prompt: int, new: int, budget: int) -> Finding:
    """Peak memory saved while decoding, in percent: of all that is allocated, the reference's mask included.

    Besides: of weights and caches alone, since a method does not need that mask.
    """
    shape = cost.model_shape(model)
    dense = cost.account("dense", shape, prompt=prompt, new=new)
    use = cost.account(method, shape, prompt=prompt, new=new, tokens=budget)
    plain, masked = (
        100 * (1 - cost.decode_peak(use, mask=mask) / cost.decode_peak(dense, mask=mask))
        for mask in (False, True)
    )
    mask_gb = (cost.decode_peak(dense, mask=True) - cost.decode_peak(dense)) / 1e9
    return Finding(
        (
            Reading(name=f"weights, caches and a mask of {mask_gb:.1f} GB", value=masked, basis="modelled"),
            Reading(name="weights and caches", value=plain, basis="modelled", beside=True),
        )
    )


def memory_gain(
    model: str, method: Method, prompt: int, new: int, budget: int, batch: int, longest: Sequence[float]
) -> Finding:
    """Memory efficiency: bytes at the same input, and the longest inputs before memory runs out.

    Args:
        model: name of a shape.
        method: entry of a method.
        prompt: tokens of the prompt.
        new: new tokens.
        budget: its budget in tokens.
        batch: batch size.
        longest: longest input with and without the method, as printed.
    """
    shape = cost.model_shape(model)
    dense = cost.account("dense", shape, prompt=prompt, new=new)
    use = cost.account(method, shape, prompt=prompt, new=new, tokens=budget)
    before, after = (shape.weight_bytes() + batch * one.resident_end for one in (dense, use))
    with_it, without = longest
    return Finding(
        (
            Reading(
                name=f"weights and caches of batch {batch} at the same input",
                value=before / after,
                basis="modelled",
            ),
            Reading(name="longest input before memory runs out", value=with_it / without, basis="printed"),
        )
    )


def kept_share(
    model: str, readings: Mapping[str, Mapping[str, Any]], prompt: int, new: int, ratio: float | None = None
) -> Finding:
    """Bytes of a method after compression as a share of dense in 16 bits, per interpretation of what is stored.

    Args:
        model: name of a shape.
        readings: entry of a method by name of the reading.
        prompt: tokens of the prompt.
        new: room for new tokens.
        ratio: budget as fraction retained, if the methods take one.
    """
    shape = cost.model_shape(model)
    dense = shape.kv_bytes(prompt)
    found = [
        Reading(
            name=name,
            value=cost.account(dict(entry), shape, prompt=prompt, new=new, ratio=ratio).resident / dense,
            basis="modelled",
        )
        for name, entry in readings.items()
    ]
    return Finding(tuple(found))


def kv_share(readings: Mapping[str, Mapping[str, Any]]) -> Finding:
    """Share of the KV cache in the total of weights and cache, in percent.

    Args:
        readings: `model` (a shape), `tokens` and `batch` by name of the reading.
    """
    found = []
    for name, entry in readings.items():
        shape = cost.model_shape(entry["model"])
        kv = entry["batch"] * shape.kv_bytes(entry["tokens"])
        found.append(Reading(name=name, value=100 * kv / (kv + shape.weight_bytes()), basis="modelled"))
    return Finding(tuple(found))


def kv_gib(model: str, tokens: int, batch: int = 1) -> Finding:
    """K and V of prompts in 16 bits, in GiB; besides in GB of 10^9 bytes."""
    size = batch * cost.model_shape(model).kv_bytes(tokens)
    return Finding(
        (
            Reading(value=size / 2**30, basis="formula"),
            Reading(name="in 10^9 bytes", value=size / 1e9, basis="formula", beside=True),
        )
    )


def prefill_seconds(model: str, method: Method, prompt: int, new: int, ratio: float, full: float) -> Finding:
    """Seconds of prefill with compression, from those of full KV and the operations; eviction follows dense attention.

    Args:
        model: name of a shape.
        method: entry of a method.
        prompt: tokens of the prompt.
        new: new tokens.
        ratio: budget as fraction retained.
        full: printed seconds of full KV.
    """
    shape = cost.model_shape(model)
    dense = cost.account("dense", shape, prompt=prompt, new=new)
    use = cost.account(method, shape, prompt=prompt, new=new, ratio=ratio)
    share = (use.prefill().flops + use.compress.flops) / dense.prefill().flops
    name = f"full KV's {full:g} s, and the operations of compression"
    return Finding((Reading(name=name, value=share * full, basis="modelled"),))


def kivi_share(model: str, bits: int, prompt: int, group: int) -> Finding:
    """Bytes of quantised keys and values as a share of 16 bits: with KIVI's settings, and for whole groups only.

    Args:
        model: name of a shape.
        bits: 2, 4 or 8.
        prompt: tokens of the prompt.
        group: numbers per scale and zero point in the second reading.
    """
    shape = cost.model_shape(model)
    kivi = cost.account({"method": f"int{bits}"}, shape, prompt=prompt, new=1).resident / shape.kv_bytes(
        prompt
    )
    block = torch.zeros(1, 1, group, shape.head_dim)
    alone = Quantised.of(block, bits, group, axis=2).row_bytes() / (2 * block.numel())
    return Finding(
        (
            Reading(name="KIVI's settings: groups of 32, 128 recent tokens", value=kivi, basis="modelled"),
            Reading(name=f"groups of {group}, no recent tokens", value=alone, basis="formula"),
        )
    )
