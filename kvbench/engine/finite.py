"""Checks that tensors are finite, which wait for the device once each.

A sum in fp32 is finite only if all its terms are: NaN and infinities never cancel out of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from kvbench.config.numbers import NotFiniteError
from kvbench.methods.base import Eviction, LayerSnapshot


def total(x: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """The sum of x, all of it or over some dimensions, in fp32: NaN or infinite if one of its numbers is."""
    return x.sum(dim, dtype=torch.promote_types(x.dtype, torch.float32))


def check_snapshot(layers: Iterable[LayerSnapshot], logits: Tensor | None = None) -> None:
    """Check everything that methods can read of a prefill.

    Args:
        layers: keys, values, queries and whatever else methods asked for; one after the other.
        logits: after the last token, if there are any.

    Raises:
        NotFiniteError: names the first layer and tensor that holds NaN or an infinity.
    """
    parts = (part for layer in layers for part in _parts(layer))
    last = [] if logits is None else [("logits after the last token", logits)]
    check((name, x) for name, x in chain(parts, last) if x.is_floating_point())


def check(parts: Iterable[tuple[str, Tensor]]) -> None:
    """Check several tensors of one device, named in the plural.

    Raises:
        NotFiniteError: names the first that holds NaN or an infinity.
    """
    if (name := first_not_finite(parts)) is not None:
        raise NotFiniteError(f"{name} are not finite")


def first_not_finite(parts: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first of several tensors of one device that holds NaN or an infinity; None if none does."""
    sums = [(name, total(x).float()) for name, x in parts]
    values = torch.stack([x for _, x in sums]).tolist() if sums else []
    return next(
        (name for (name, _), value in zip(sums, values, strict=True) if not math.isfinite(value)), None
    )


def check_scores(scores: Any, eviction: Eviction, layer: int) -> None:
    """Check an eviction's scores, which would otherwise rank NaN somewhere.

    Args:
        scores: what `Eviction.scores` returned: a tensor, or a dataclass, list or mapping with tensors.
        eviction: infinities are allowed where it `pins` tokens.
        layer: index of the layer.

    Raises:
        NotFiniteError: a score is NaN or infinite.
    """
    pinned = eviction.pins
    tensors = [x for x in tensors_in(scores) if x.is_floating_point()]
    bad = [x.isnan().any() | (x == -torch.inf).any() if pinned else ~total(x).isfinite() for x in tensors]
    if bad and bool(torch.stack(bad).any()):
        raise NotFiniteError(f"scores of {eviction.name} in layer {layer} are not finite")


def _parts(layer: LayerSnapshot) -> Iterator[tuple[str, Tensor]]:
    named = {
        "keys": layer.k_HTD,
        "values": layer.v_HTD,
        "queries of the window": layer.q_QWD,
        "attention sums": layer.attention_sum_QT,
        "attention sums of the answer": layer.answer_sum_QT,
    }
    for name, x in named.items():
        if x is not None:
            yield f"{name} of layer {layer.layer}", x


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
