"""Configuration of `vllm_fp8`."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvbench.config.errors import UserError
from kvbench.vllm.measure import LoadConfig
from kvbench.vllm.prompts import PromptsConfig


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """The prompts on which a checkpoint's scales are calibrated.

    Attributes:
        samples: per task and length.
        seed: of these samples; must not be among the seeds that are scored.
    """

    samples: int = 4
    seed: int = 1000


@dataclass(frozen=True, kw_only=True)
class Fp8Config(PromptsConfig):
    """The configuration; the first of `setups` is the unquantised reference.

    Attributes:
        top: log probabilities per token that are compared; vLLM serves up to 20 by default.
        load: how the same prompts arrive for the latency under load.
        calibration: for setups with `scales`.
    """

    top: int = 20
    load: LoadConfig = field(default_factory=LoadConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)

    def __post_init__(self) -> None:
        if not self.task:
            raise UserError("task: empty, give task=[...]")
        if self.top < 1:
            raise UserError(f"top: {self.top} is not allowed, give 1 or more")
        if self.calibration.seed in self.seeds:
            raise UserError(
                f"calibration.seed: {self.calibration.seed} is among the seeds that are scored, give another"
            )
