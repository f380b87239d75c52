"""Why a cell has no result."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Literal

import torch

from kvbench.config.errors import UserError
from kvbench.config.numbers import NotFiniteError
from kvbench.config.secrets import masked

Kind = Literal["not_finite", "out_of_memory", "audit", "refused", "raised", "dense"]


class AuditError(RuntimeError):
    """A cell's cache differs from what its method promises."""


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result; holds text only, so that no tensor stays in memory.

    Attributes:
        kind: `refused` is a setting that the method does not take for this prompt, `dense` that dense failed.
        stage: prefill, compress, decode, score or measure.
        reason: one line.
        error: class of the exception.
        traceback: its traceback.
    """

    kind: Kind
    stage: str
    reason: str
    error: str
    traceback: str

    @classmethod
    def of(cls, error: Exception, stage: str) -> Failure:
        """The failure that an exception is."""
        reason = masked(" ".join(str(error).split())) or type(error).__name__
        text = masked("".join(traceback.format_exception(error)))
        kind = _kind(error)
        if kind == "raised":
            reason = f"{type(error).__name__}: {reason}"
        return cls(kind, stage, reason, type(error).__name__, text)


class DenseError(RuntimeError):
    """Dense failed on a prompt, so that no cell of it has anything to be compared with.

    Attributes:
        failure: of dense.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"dense failed: {failure.reason}")
        self.failure = failure


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch's allocator for the CPU raises a plain RuntimeError
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def device_lost(error: BaseException) -> bool:
    """Whether the GPU reported an error after which nothing runs on it in this process."""
    lost = getattr(torch, "AcceleratorError", ())
    return isinstance(error, lost) and not isinstance(error, torch.OutOfMemoryError)


def _kind(error: Exception) -> Kind:
    if out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, NotFiniteError):
        return "not_finite"
    if isinstance(error, AuditError):
        return "audit"
    return "refused" if isinstance(error, UserError) else "raised"
