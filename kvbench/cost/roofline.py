"""Time, memory and money of a modelled sequence on a device. Every figure here is `modelled`.

A decode step takes max(bytes / bandwidth, operations / rate) for the weights and the same for the caches. That is a
lower bound: launches, the choice of tokens, sampling and a scheduler come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvbench.config.errors import UserError
from kvbench.cost.hardware import Hardware

if TYPE_CHECKING:
    from kvbench.cost.accounting import Account, Work

USABLE = 0.9  # share of the memory for weights and caches; the rest is for activations and the driver


@dataclass(frozen=True)
class Estimate:
    """What a batch of equal sequences costs; `modelled`.

    Attributes:
        batch: sequences decoded together.
        step_s: seconds of a decode step, mean over the new tokens.
        prefill_s: seconds of one sequence's prefill.
        compress_s: seconds of its compression.
        request_s: seconds of the device that one sequence takes, steps shared with the batch.
        memory: bytes that must fit while decoding.
        fits: whether they fit with the share of the memory that may be used.
        bound: what limits a decode step.
        usd_per_hour: rental price, or None.
        new: tokens that each sequence generates.
    """

    batch: int
    step_s: float
    prefill_s: float
    compress_s: float
    request_s: float
    memory: float
    fits: bool
    bound: str
    usd_per_hour: float | None
    new: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all sequences together per second, while decoding."""
        return self.batch / self.step_s

    @property
    def usd_per_million_tokens(self) -> float | None:
        """Dollars per million generated tokens, decoding alone."""
        return usd_per_million(self.tokens_per_s, self.usd_per_hour)

    @property
    def usd_per_request(self) -> float | None:
        """Dollars per sequence, prefill and compression included."""
        return None if self.usd_per_hour is None else self.usd_per_hour * self.request_s / 3600


def estimate(
    use: Account, device: Hardware, batch: int = 1, *, usd_per_hour: float | None = None, kv_passes: int = 1,
    peak: bool = False, cached: int = 0, usable: float = USABLE, weight_element: float | None = None,
) -> Estimate:  # fmt: skip
    """Time, memory and money of a batch.

    Args:
        use: one sequence, from `account`.
        device: where it runs.
        batch: sequences decoded together.
        usd_per_hour: instead of the device's rental price.
        kv_passes: how often a step reads what it reads of the cache; the group size for a baseline that reads keys
            and values once per query head.
        peak: reckon with the datasheet's figures.
        cached: tokens at the prompt's beginning whose keys and values a prefix cache holds.
        usable: share of the memory that may be used.
        weight_element: bytes of a weight, where it is not the model's element.
    """
    for name, value in (("batch", batch), ("kv_passes", kv_passes)):
        if value < 1:
            raise UserError(f"{name}: {value} is not above 0")
    shape, bandwidth, rate = use.shape, device.bandwidth(peak), device.flops(peak)
    element = use.element if weight_element is None else weight_element
    weights, products = shape.weights_read(element), 2 * batch * shape.weights_read(1)
    cache = use.mean_step()
    moved = batch * (cache.read * kv_passes + cache.written)
    by_bytes, by_flops = (
        (weights / bandwidth, moved / bandwidth),
        (products / rate, batch * cache.flops / rate),
    )
    step_s = sum(map(max, by_bytes, by_flops))
    prefill_s = max(seconds(use.prefill(cached), bandwidth, rate), weights / bandwidth)
    compress_s = seconds(use.compress, bandwidth, rate)
    memory = decode_peak(use, batch, weight_element=element)
    price = device.usd_per_hour if usd_per_hour is None else usd_per_hour
    return Estimate(
        batch=batch,
        step_s=step_s,
        prefill_s=prefill_s,
        compress_s=compress_s,
        request_s=prefill_s + compress_s + use.new * step_s / batch,
        memory=memory,
        fits=memory <= usable * device.memory,
        bound="bandwidth" if sum(by_bytes) >= sum(by_flops) else "compute",
        usd_per_hour=price,
        new=use.new,
    )


def seconds(work: Work, bandwidth: float, rate: float) -> float:
    """The longer of moving the bytes and of doing the operations."""
    return max(work.bytes / bandwidth, work.flops / rate)


def max_batch(
    use: Account, device: Hardware, usable: float = USABLE, weight_element: float | None = None
) -> int:
    """Sequences that fit beside the weights while the last of them is prefilled and compressed; 0 if none does.

    Prefill needs the whole dense cache of one sequence, whatever is kept of it. Activations are left out.
    """
    shape = use.shape
    room = usable * device.memory - shape.weight_bytes(
        use.element if weight_element is None else weight_element
    )
    others = room - max(_prefill_cache(use), use.resident_end)
    return 0 if others < 0 else 1 + int(others // use.resident_end)


def decode_peak(
    use: Account, batch: int = 1, *, mask: bool = False, weight_element: float | None = None
) -> float:
    """Bytes of weights and caches after the last decode step.

    Args:
        use: one sequence.
        batch: sequences.
        mask: with the causal mask of RocketKV's reference code: one byte per pair of positions, their number rounded
            up to a multiple of 8.
        weight_element: bytes of a weight, where it is not the model's element.
    """
    weights = use.shape.weight_bytes(use.element if weight_element is None else weight_element)
    return weights + batch * use.resident_end + (_mask_bytes(use) if mask else 0)


def prefill_peak(use: Account, batch: int = 1, *, mask: bool = False) -> float:
    """Bytes of weights and caches while the last of the sequences is prefilled and compressed; see `decode_peak`."""
    peak = use.shape.weight_bytes(use.element) + (batch - 1) * use.resident_end + _prefill_cache(use)
    return peak + (_mask_bytes(use) if mask else 0)


def traffic_limit(use: Account, batch: int = 1, kv_passes: int = 1) -> float:
    """How much faster a bandwidth-bound step would be if it read nothing of the cache; `use` is the baseline."""
    weights = use.shape.weights_read(use.element)
    return (weights + batch * kv_passes * use.step.read) / weights


def usd_per_million(tokens_per_s: float, usd_per_hour: float | None) -> float | None:
    """Dollars per million tokens at a rental price; None without one."""
    return None if usd_per_hour is None else usd_per_hour / 3600 / tokens_per_s * 1e6


def _prefill_cache(use: Account) -> float:
    """Bytes of one sequence's caches when it is compressed: all of its keys and values, and what becomes of them."""
    whole = use.shape.kv_bytes(use.prompt, use.element)
    return max(whole, use.resident) if use.kept == use.prompt else whole + use.resident


def _mask_bytes(use: Account) -> int:
    side = -(-(use.prompt + use.new) // 8) * 8
    return side * side
