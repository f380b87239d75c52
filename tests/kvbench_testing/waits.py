"""Finds where the host would wait for a GPU, on tensors of the CPU.

Two modes of torch look together: one sees what Python asks of a tensor (`int(x)`, `x.tolist()`, `x[mask]`), which on a
CPU may reach no operation at all; the other one the operations that others are made of.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: methods and functions whose result, or its shape, depends on numbers that are on the device
NUMBERS = {
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__array__",
    "cpu", "numpy", "is_nonzero", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive",
    "unique_dim", "_unique2", "equal", "allclose", "bincount", "_local_scalar_dense", "histogram",
    "masked_scatter", "masked_scatter_",
}  # fmt: skip
MASKS = (torch.bool, torch.uint8)


class _Seen:
    def __init__(self, raising: bool) -> None:
        self.raising, self.waits = raising, []

    def add(self, name: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "kvbench_testing" not in frame.filename]
        ours = [frame for frame in frames if "site-packages" not in frame.filename]
        where = (ours or frames)[-1]
        self.waits.append(f"{name} in {Path(where.filename).name}, line {where.lineno}")
        if self.raising:
            raise RuntimeError(f"the host waits: {self.waits[-1]}")


def _waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name in NUMBERS:
        return True
    if name == "where":
        return len(args) + len(kwargs) == 1
    if name == "repeat_interleave":
        repeats = kwargs.get("repeats", args[1] if len(args) > 1 else None)
        return isinstance(repeats, Tensor) and kwargs.get("output_size") is None
    if name == "to":
        return any(x == "cpu" for x in (*args[1:2], kwargs.get("device")) if isinstance(x, str))
    if name in ("__getitem__", "__setitem__", "index", "index_put", "index_put_", "_index_put_impl_"):
        return any(x.dtype in MASKS for x in _parts(args[1]))
    return False


def _parts(index: Any) -> Iterator[Tensor]:
    for part in index if isinstance(index, tuple | list) else [index]:
        if isinstance(part, Tensor):
            yield part


class _Functions(TorchFunctionMode):
    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if _waits(getattr(function, "__name__", ""), args, kwargs or {}):
            self.seen.add(function.__name__)
            # counted once, whatever it is made of
            with torch.utils._python_dispatch._disable_current_modes():
                return function(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        # copies that `to` makes on a CPU are between devices nowhere
        if name != "to" and _waits(name, args, kwargs or {}):
            self.seen.add(f"aten.{name}")
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def watching(raising: bool = True) -> Iterator[list[str]]:
    """Watches every operation inside the context.

    A copy to the CPU is seen where it is called so (`cpu()`, `to("cpu")`): all tensors are on one device here.

    Args:
        raising: raise where the host would wait; else only collect.

    Yields:
        What would have waited so far, with file and line.

    Raises:
        RuntimeError: the host would wait.
    """
    seen = _Seen(raising)
    with _Functions(seen), _Operations(seen):
        yield seen.waits
