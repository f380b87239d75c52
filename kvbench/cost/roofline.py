"""Time, memory and money of a modelled sequence on a device; every figure is `modelled`.

A decode step takes max(bytes / bandwidth, operations / rate) for the weights plus the same for the caches. That is a
lower bound: kernel launches, the choice of tokens, sampling and a scheduler come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvbench.config.errors import UserError
from kvbench.cost.hardware import Hardware
from kvbench.cost.shapes import ModelShape

if TYPE_CHECKING:
    from kvbench.cost.accounting import Account, Work

USABLE = 0.9  # share of memory for weights and caches; activations and the driver need the rest


@dataclass(frozen=True)
class Estimate:
    """The cost of a batch of equal sequences; `modelled`.

    Attributes:
        batch: sequences decoded together.
        step_s: seconds per decode step, mean over the new tokens.
        prefill_s: seconds of one sequence's prefill.
        compress_s: seconds of one sequence's compression.
        request_s: device seconds per sequence, with steps shared by the batch.
        memory: peak bytes while decoding.
        fits: whether they fit into the usable share of the memory.
        bound: what limits a decode step, "bandwidth" or "compute".
        usd_per_hour: rental price, None if unknown.
        new: tokens generated per sequence.
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
        """Tokens per second of all sequences together while decoding."""
        return self.batch / self.step_s

    @property
    def usd_per_million_decode(self) -> float | None:
        """Dollars per million generated tokens for decoding alone, without prefill and compression."""
        return usd_per_million(self.tokens_per_s, self.usd_per_hour)

    @property
    def usd_per_million_whole(self) -> float | None:
        """Dollars per million generated tokens for whole sequences; prefill weighs the less, the longer the answer."""
        return None if self.usd_per_request is None else self.usd_per_request / self.new * 1e6

    @property
    def usd_per_request(self) -> float | None:
        """Dollars per sequence, including prefill and compression."""
        return None if self.usd_per_hour is None else self.usd_per_hour * self.request_s / 3600


def estimate(
    account: Account, device: Hardware, batch: int = 1, *, usd_per_hour: float | None = None, kv_passes: int = 1,
    peak: bool = False, cached: int = 0, usable: float = USABLE, weight_element: float | None = None,
) -> Estimate:  # fmt: skip
    """Time, memory and money of a batch.

    Args:
        account: one sequence, from `kvbench.cost.account`.
        device: where it runs.
        batch: sequences decoded together.
        usd_per_hour: overrides the device's rental price.
        kv_passes: times a step reads its part of the cache; the group size for a baseline that reads keys and values
            once per query head.
        peak: use the datasheet's figures.
        cached: tokens at the start of the prompt whose keys and values come from a prefix cache.
        usable: share of the memory for weights and caches.
        weight_element: bytes per weight, if not the model's element.
    """
    for name, value in (("batch", batch), ("kv_passes", kv_passes)):
        if value < 1:
            raise UserError(f"{name}: {value} is not above 0")
    shape, bandwidth, rate = account.shape, device.bandwidth(peak), device.flops(peak)
    element = account.element if weight_element is None else weight_element
    weights = weight_step(shape, device, element, peak=peak)
    cache = account.mean_step()
    moved = batch * (cache.read * kv_passes + cache.written) / bandwidth
    products = batch * cache.flops / rate
    step_s = weights.seconds(batch, moved, products)
    prefill_s = max(seconds(account.prefill(cached), bandwidth, rate), weights.read_s)
    compress_s = seconds(account.compress, bandwidth, rate)
    memory = decode_peak(account, batch, weight_element=element)
    price = device.usd_per_hour if usd_per_hour is None else usd_per_hour
    return Estimate(
        batch=batch,
        step_s=step_s,
        prefill_s=prefill_s,
        compress_s=compress_s,
        request_s=prefill_s + compress_s + account.new * step_s / batch,
        memory=memory,
        fits=memory <= usable * device.memory,
        bound="bandwidth" if weights.read_s + moved >= batch * weights.product_s + products else "compute",
        usd_per_hour=price,
        new=account.new,
    )


@dataclass(frozen=True)
class WeightStep:
    """The part of a decode step that does not depend on the caches.

    Attributes:
        read_s: seconds to read the weights, once per step.
        product_s: seconds of one sequence's products with them.
    """

    read_s: float
    product_s: float

    def seconds(self, batch: int, by_bytes: float, by_flops: float) -> float:
        """Seconds of a decode step.

        Args:
            batch: sequences in it.
            by_bytes: seconds to move what all their caches read and write.
            by_flops: seconds of the operations on all their caches.
        """
        return max(self.read_s, batch * self.product_s) + max(by_bytes, by_flops)


def weight_step(
    shape: ModelShape, device: Hardware, weight_element: float = 2, *, peak: bool = False
) -> WeightStep:
    """What the weights take in a decode step.

    Args:
        shape: the model.
        device: where it runs.
        weight_element: bytes per weight.
        peak: use the datasheet's figures.
    """
    return WeightStep(
        shape.weights_read(weight_element) / device.bandwidth(peak),
        2 * shape.weights_read(1) / device.flops(peak),
    )


def seconds(work: Work, bandwidth: float, rate: float) -> float:
    """The longer of moving the bytes and doing the operations."""
    return max(work.bytes / bandwidth, work.flops / rate)


def prefill_cache(account: Account) -> float:
    """Bytes of one sequence's caches during compression: all keys and values, and the compressed cache."""
    whole = account.shape.kv_bytes(account.prompt, account.element)
    return max(whole, account.resident) if account.kept == account.prompt else whole + account.resident


def max_batch(
    account: Account, device: Hardware, usable: float = USABLE, weight_element: float | None = None
) -> int:
    """The most sequences that fit next to the weights while the last one is prefilled and compressed; 0 if none fits.

    Prefill needs the whole dense cache of one sequence, whatever is kept of it. Activations are not counted.
    """
    shape = account.shape
    room = usable * device.memory - shape.weight_bytes(
        account.element if weight_element is None else weight_element
    )
    others = room - max(prefill_cache(account), account.resident_end)
    return 0 if others < 0 else 1 + int(others // account.resident_end)


def decode_peak(
    account: Account, batch: int = 1, *, mask: bool = False, weight_element: float | None = None
) -> float:
    """Bytes of weights and caches after the last decode step.

    Args:
        account: one sequence.
        batch: sequences.
        mask: include the causal mask of RocketKV's reference code: one byte per pair of positions, with their number
            rounded up to a multiple of 8.
        weight_element: bytes per weight, if not the model's element.
    """
    weights = account.shape.weight_bytes(account.element if weight_element is None else weight_element)
    return weights + batch * account.resident_end + (_mask_bytes(account) if mask else 0)


def prefill_peak(account: Account, batch: int = 1, *, mask: bool = False) -> float:
    """Bytes of weights and caches while the last sequence is prefilled and compressed; see `decode_peak`."""
    peak = (
        account.shape.weight_bytes(account.element)
        + (batch - 1) * account.resident_end
        + prefill_cache(account)
    )
    return peak + (_mask_bytes(account) if mask else 0)


def traffic_limit(account: Account, batch: int = 1, kv_passes: int = 1) -> float:
    """Speed-up over the baseline `account` of a bandwidth-bound step that reads none of the cache."""
    weights = account.shape.weights_read(account.element)
    return (weights + batch * kv_passes * account.step.read) / weights


def usd_per_million(tokens_per_s: float, usd_per_hour: float | None) -> float | None:
    """Dollars per million tokens at a rental price; None without a price."""
    return None if usd_per_hour is None else usd_per_hour / 3600 / tokens_per_s * 1e6


def _mask_bytes(account: Account) -> int:
    side = -(-(account.prompt + account.new) // 8) * 8
    return side * side
