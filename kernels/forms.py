"""Which form of an operation runs: the device's best one, unless a caller asks for another."""

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import ModuleType

import torch

from kvbench.kernels.dtypes import CODES

#: forms by name, and the module of an operation that holds each
MODULES = {"naive": "naive", "portable": "portable", "compiled": "cpu", "triton": "triton_form"}

_asked: ContextVar[str | None] = ContextVar("kvbench_form", default=None)


@contextlib.contextmanager
def using(form: str) -> Iterator[None]:
    """Inside, operations run in this form; those that do not have it, in the portable one.

    For tests and comparisons. A thread started inside does not inherit it.

    Args:
        form: naive, portable, compiled or triton.
    """
    assert form in MODULES, f"{form} is none of {', '.join(MODULES)}"
    before = _asked.set(form)
    try:
        yield
    finally:
        _asked.reset(before)


def choose(
    device: torch.device,
    dtype: torch.dtype,
    compiled: Callable[[], bool] = lambda: False,
    triton: bool = True,
) -> str:
    """The form that an operation runs in: Triton on an NVIDIA GPU, compiled on a CPU, else portable.

    Args:
        device: where the tensors are.
        dtype: of the keys; other forms than naive and portable know 16-bit and 32-bit floating point only.
        compiled: whether the operation's compiled form can be used here.
        triton: whether the operation has a Triton form.
    """
    form = _asked.get() or _best(device)
    if form == "naive":
        return form
    has = (form == "triton" and triton) or (form == "compiled" and compiled())
    return form if has and dtype in CODES else "portable"


def load(operation: str, form: str) -> ModuleType:
    """The module that holds a form; imported on first use, so that nothing needs triton that does not run it.

    Args:
        operation: the operation's package, its `__name__`.
        form: a name from `choose`.
    """
    return importlib.import_module(f"{operation}.{MODULES[form]}")


@functools.cache
def _best(device: torch.device) -> str:
    if device.type == "cpu":
        return "compiled"
    # the Triton forms are for NVIDIA GPUs from sm_80
    nvidia = device.type == "cuda" and torch.version.hip is None
    if nvidia and importlib.util.find_spec("triton") and torch.cuda.get_device_capability(device) >= (8, 0):
        return "triton"
    return "portable"
