"""How many rows a pass may have, so that no row's numbers depend on it.

A matrix product may add up in another order when it has another number of rows. Where a model's products do not, which
a run on its own weights shows, a pass is as large as its tokens need; otherwise all passes have the same size.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

#: sizes are multiples of it
STEP = 8

# by model, then by number of threads
_found: WeakKeyDictionary[PreTrainedModel, dict[int, list[int]]] = WeakKeyDictionary()


def pass_sizes(model: PreTrainedModel, largest: int) -> list[int]:
    """The sizes, ascending, whose rows are bitwise those of a pass of `largest` rows, which is the last of them.

    On other devices than a CPU a pass of `largest` rows costs little more than a smaller one: it is the only one there.
    """
    if model.device.type != "cpu":
        return [largest]
    known = _found.setdefault(model, {})
    threads = torch.get_num_threads()
    if threads not in known:
        known[threads] = _equal_sizes(model, largest)
    return known[threads]


@torch.inference_mode()
def _equal_sizes(model: PreTrainedModel, largest: int) -> list[int]:
    kinds = {}
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            kinds.setdefault((*layer.weight.shape, layer.weight.dtype, layer.bias is None), layer)
    sizes: Sequence[int] = range(STEP, largest, STEP)
    random = torch.Generator().manual_seed(0)
    for layer in kinds.values():
        # as in a pass: a token per row
        x = torch.randn(largest, 1, layer.in_features, generator=random).to(layer.weight.dtype)
        expected = layer(x)
        sizes = [size for size in sizes if torch.equal(layer(x[:size]), expected[:size])]
    return [*sizes, largest]
