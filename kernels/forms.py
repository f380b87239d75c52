"""Which form of an operation runs: the fastest on the device, unless a caller forces another."""

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

#: the form in which an operation would run for a device and a dtype of the keys
Rule = Callable[[torch.device, torch.dtype], str]

_forced: ContextVar[str | None] = ContextVar("kvbench_form", default=None)
_calls: ContextVar[dict[str, Rule] | None] = ContextVar("kvbench_operations", default=None)


@contextlib.contextmanager
def using(form: str) -> Iterator[None]:
    """Force a form inside the context; operations without it run in the portable one.

    For tests and comparisons. A thread started inside does not inherit it.

    Args:
        form: naive, portable, compiled or triton.
    """
    assert form in MODULES, f"{form} is none of {', '.join(MODULES)}"
    before = _forced.set(form)
    try:
        yield
    finally:
        _forced.reset(before)


@contextlib.contextmanager
def recording() -> Iterator[dict[str, Rule]]:
    """Collect the operations that are called inside the context.

    Yields:
        The rule of each operation by name: that of its package, `pool`, or `pool.chunk_sums` for a function whose
        rule is another one. Operations that an operation dispatches to are included.
    """
    calls: dict[str, Rule] = {}
    before = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(before)


def note(operation: str, rule: Callable[..., str], *sizes: int) -> None:
    """Tell `recording` that an operation is called.

    Args:
        operation: `__name__` of its package, with `.function` appended for a function with a rule of its own.
        rule: its form by device, dtype and `sizes`.
        sizes: what else the rule depends on.
    """
    calls = _calls.get()
    if calls is not None:
        name = operation.removeprefix(f"{__package__}.")
        calls[name] = lambda device, dtype: rule(device, dtype, *sizes)


def dispatch(
    operation: str, rule: Callable[..., str], device: torch.device, dtype: torch.dtype, *sizes: int, part: str = ""
) -> ModuleType:  # fmt: skip
    """The module of the form that an operation's rule chooses; `recording` sees the call.

    Args:
        operation: `__name__` of its package.
        rule: its form by device, dtype and `sizes`.
        device: where the tensors are.
        dtype: of the keys.
        sizes: what else the rule depends on.
        part: name of the function, where its rule is not that of the package.
    """
    note(f"{operation}.{part}" if part else operation, rule, *sizes)
    return load(operation, rule(device, dtype, *sizes))


def choose(
    device: torch.device,
    dtype: torch.dtype,
    compiled: Callable[[], bool] = lambda: False,
    triton: bool = True,
) -> str:
    """The form that an operation runs in: Triton on an NVIDIA GPU, compiled on a CPU, else portable.

    Args:
        device: where the tensors are; tensors without data run in the portable form.
        dtype: of the keys; only the naive and portable forms take other dtypes than 16-bit and 32-bit floating point.
        compiled: whether the operation's compiled form can be used here.
        triton: whether the operation has a Triton form.
    """
    if device.type == "meta":
        # whatever is forced: there is no data, and no address that a compiled form may read
        return "portable"
    form = _forced.get() or _best(device)
    if form == "naive":
        return form
    has = (form == "triton" and triton) or (form == "compiled" and compiled())
    return form if has and dtype in CODES else "portable"


def portable(device: torch.device, dtype: torch.dtype) -> str:
    """The rule of an operation that has one form, written in torch."""
    return "portable"


def load(operation: str, form: str) -> ModuleType:
    """The module of a form, imported on first use: triton is imported only where a Triton form runs.

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
