"""Keeps only the layer of a snapshot that is in use on the device, and the others in the host's memory.

A tensor stays the same object, so that lanes and states that refer to it need not know: its storage is empty while its
layer is not in use, and filled again before. No number depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from kvbench.methods.base import LayerSnapshot


class Offloaded:
    """The layers of a snapshot, of which one at a time is on the device.

    Args:
        layers: all of them; their tensors are emptied.
    """

    def __init__(self, layers: Sequence[LayerSnapshot]) -> None:
        # all are copied before the first is emptied, as the host's memory may not suffice
        self._stored = [[(storage, _copied(storage)) for storage in _storages(layer)] for layer in layers]
        self._used: int | None = None
        for number in range(len(layers)):
            self._empty(number)

    def use(self, number: int) -> None:
        """Have a layer on the device, and no other one."""
        if number == self._used:
            return
        if self._used is not None:
            self._empty(self._used)
        self._used = number
        for storage, host in self._stored[number]:
            storage.resize_(host.nbytes())
            storage.copy_(host)

    def _empty(self, number: int) -> None:
        for storage, _ in self._stored[number]:
            emptied(storage)


def emptied(storage: torch.UntypedStorage) -> None:
    """Give a storage's memory back."""
    storage.resize_(0)


def worthwhile(device: torch.device) -> bool:
    """Whether a device has memory of its own, beside the host's."""
    return device.type != "cpu"


def _storages(layer: LayerSnapshot) -> Iterator[torch.UntypedStorage]:
    seen = set()
    for x in (layer.k_HTD, layer.v_HTD, layer.q_QWD, layer.attention_sum_QT):
        if x is not None and (storage := x.untyped_storage()).data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage


def _copied(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    host = torch.UntypedStorage(storage.nbytes())
    host.copy_(storage)
    return host
