"""The cost model: bytes, operations, memory, time and money of a method, a model and a device, all `modelled`."""

from typing import TYPE_CHECKING, Any

from kvbench.cost.hardware import Hardware, hardware, hardware_names
from kvbench.cost.roofline import (
    Estimate,
    WeightStep,
    decode_peak,
    estimate,
    max_batch,
    prefill_cache,
    prefill_peak,
    traffic_limit,
    usd_per_million,
    weight_step,
)
from kvbench.cost.shapes import ModelShape, model_shape

if TYPE_CHECKING:
    from kvbench.cost.accounting import Account, Work, account

__all__ = [
    "Account", "Estimate", "Hardware", "ModelShape", "WeightStep", "Work", "account", "decode_peak", "estimate",
    "hardware", "hardware_names", "max_batch", "model_shape", "prefill_cache", "prefill_peak", "traffic_limit",
    "usd_per_million", "weight_step",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # methods need torch; models, devices and money do not
    if name in ("Account", "Work", "account"):
        import importlib

        return getattr(importlib.import_module("kvbench.cost.accounting"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
