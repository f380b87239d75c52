"""Configuration of the two-layer comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kvbench.claude.placements import registry
from kvbench.claude.rag.config import RagConfig
from kvbench.config.errors import UserError
from kvbench.runs.config import BudgetConfig

LAYERS = {"api": "prompt caching at the API", "model": "a model of one's own on a rented device"}


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """A measured throughput that replaces the modelled one.

    Attributes:
        prefill: prompt tokens per second of the device.
        decode: generated tokens per second, over all sequences.
    """

    prefill: float
    decode: float

    def __post_init__(self) -> None:
        for name in ("prefill", "decode"):
            if getattr(self, name) <= 0:
                raise UserError(
                    f"measured.{name}: {getattr(self, name)} is not allowed, give a number above 0"
                )


@dataclass(frozen=True, kw_only=True)
class TwoLayerConfig(RagConfig):
    """The sessions of `RagConfig`, and how to price and serve them.

    Attributes:
        layer: api, model, or both with their break-even.
        layout: layout that produces the sessions.
        trace: recorded trace to use instead of running the layout, null to run it.
        placements: placements of cache_control at the API.
        plan: also plan the cheapest placement.
        hosted_model: the self-hosted model, from conf/shape or a folder with a config.json.
        device: its device, from conf/hardware or a file.
        method: cache methods: entries for `kvbench.methods.build` by label.
        budget: budget of the methods that need one; exactly one value.
        batch: maximum number of sequences decoded together; how many there are follows from the load.
        draws: draws of the times at which sessions begin.
        usable: share of the memory for weights and caches.
        weight_element: bytes of a weight, null for the model's own (2); 1 for weights in fp8.
        usd_per_hour: rent, null for the price in the device's file.
        utilisation: share of the day that a full device is busy.
        sessions_per_day: load of a device, on average; null for as many sessions as keep it busy for `utilisation`.
        rents: multiples of the rent, for the sensitivity.
        utilisations: utilisations for the sensitivity.
        outputs: multiples of the answer length, for the sensitivity.
        claude_models: Claude models for the sensitivity.
        measured: measured throughput by method label, with the suffix `_prefix` for its prefix cache.
        config_dirs: the user's configuration folders.
    """

    layer: Literal["api", "model", "both"] = "both"
    layout: Literal["article_graph", "agent", "corrected", "append_only"] = "append_only"
    trace: str | None = None
    placements: tuple[str, ...] = tuple(name for name in registry() if name != "as_sent")
    plan: bool = True
    hosted_model: str = "llama31_8b"
    device: str = "h100_sxm"
    method: dict[str, dict[str, Any]] = field(default_factory=dict)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    batch: int = 8
    draws: int = 5
    usable: float = 0.9
    weight_element: float | None = None
    usd_per_hour: float | None = None
    utilisation: float = 0.4
    sessions_per_day: int | None = None
    rents: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    utilisations: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    outputs: tuple[int, ...] = (1, 10)
    claude_models: tuple[str, ...] = (
        "claude-sonnet-4-6", "claude-sonnet-5", "claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-5-5",
    )  # fmt: skip
    measured: dict[str, Any] = field(default_factory=dict)
    config_dirs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer != "api" and not self.method:
            raise UserError("method: empty, give method=[dense,...]")
        if "none" not in self.placements:
            raise UserError("placements: none is missing, the others are compared with it")
        for name in ("batch", "draws"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not allowed, give 1 or more")
        for name in ("usd_per_hour", "weight_element", "sessions_per_day"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name}: {value} is not allowed, give a number above 0")
        for name in ("rents", "utilisations", "outputs"):
            if not getattr(self, name):
                raise UserError(f"{name}: empty, give at least one number")
        if not self.claude_models:
            raise UserError("claude_models: empty, give at least one model")
        for name in ("usable", "utilisation"):
            _share(name, getattr(self, name))
        for value in self.utilisations:
            _share("utilisations", value)
        for name in ("rents", "outputs"):
            for value in getattr(self, name):
                if value <= 0:
                    raise UserError(f"{name}: {value} is not allowed, give numbers above 0")


def load_text(cfg: TwoLayerConfig) -> str:
    """How busy a device is taken to be."""
    if cfg.sessions_per_day is not None:
        return f"with {cfg.sessions_per_day:,} sessions per day and device"
    return f"full at {cfg.utilisation:.0%} of the day"


def _share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise UserError(f"{name}: {value} is not in (0, 1]")
