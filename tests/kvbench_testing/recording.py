"""A stand-in for CUDA graphs on a machine without a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kvbench_testing.waits import watching


class Graph(TorchDispatchMode):
    """Records the operations of one step and repeats them on the same memory, as a CUDA graph does.

    A replay does not run Python: a value that a step reads from Python instead of from a tensor stays as it was when
    recorded. Reading a number from the device fails.
    """

    def __init__(self):
        super().__init__()
        self.calls = []
        self.watch = watching()

    def __enter__(self):
        self.watch.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        return self.watch.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(out), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for item in value for t in _tensors(item)] if isinstance(value, tuple | list) else []
