"""Configuration of `vllm_load`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kvbench.config.errors import UserError
from kvbench.vllm.measure import LoadConfig
from kvbench.vllm.prompts import PromptsConfig


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """A recorded trace in place of tasks.

    Attributes:
        path: folder or file, as for `kvbench run experiment=claude_replay`; null for tasks.
        shrink: every content block gets 1/shrink of its tokens.
        speed: factor by which the trace's clock is accelerated.
        max_output: longest answer in tokens.
    """

    path: str | None = None
    shrink: int = 1
    speed: float = 1.0
    max_output: int = 64


@dataclass(frozen=True, kw_only=True)
class LoadRunConfig(PromptsConfig):
    """The configuration.

    Attributes:
        trace: a recorded trace in place of tasks.
        rates: sessions per second, each a load of its own; null = all at once, or as recorded.
        load: the other settings of a load; its rate is replaced by those of `rates`.
    """

    trace: TraceConfig = field(default_factory=TraceConfig)
    rates: tuple[float | None, ...] = (0.1,)
    load: LoadConfig = field(default_factory=LoadConfig)

    def __post_init__(self) -> None:
        if not self.rates:
            raise UserError("rates: empty, give rates=[...]")
        for rate in self.rates:
            replace(self.load, rate=rate)
        if bool(self.task) == bool(self.trace.path):
            raise UserError("trace.path: give either task=[...] or trace.path with task=[]")
