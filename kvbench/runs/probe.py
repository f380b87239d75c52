"""Which operations a method calls: found by running it once on random keys, values and queries, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvbench.config.errors import UserError
from kvbench.engine.compress import build_batch
from kvbench.engine.prefill import Snapshot
from kvbench.kernels import forms
from kvbench.kernels.attention_sum import attention_sum
from kvbench.methods import Budget, LayerSnapshot, Method, Resolved, Shape
from kvbench.methods.repeat import Repeat
from kvbench.models.load import LoadedModel

#: prompt tokens at least and at most
SHORTEST, LONGEST = 512, 8192
#: of the prompt; at the smaller one a selection reads less than the eviction before it keeps
FRACTIONS = (4, 32)
#: tokens fed at once as the question of a query-agnostic prompt, and then one by one
QUESTION, STEPS = 2, 4


@dataclass(frozen=True)
class Heads:
    """What operations can depend on in a model.

    Attributes:
        kv: KV heads.
        group: query heads per KV head.
        dim: channels of a head.
        layers: layers of the model.
    """

    kv: int
    group: int
    dim: int
    layers: int


def heads_of(loaded: LoadedModel) -> Heads:
    """The heads of a loaded model."""
    config = loaded.model.config.get_text_config()
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = config.num_key_value_heads
    return Heads(heads, config.num_attention_heads // heads, dim, config.num_hidden_layers)


@torch.inference_mode()
def operations_called(method: Method, ratio: bool, heads: Heads) -> dict[str, forms.Rule]:
    """The operations that a method calls, with the engine's own, and the rules of their forms.

    They are found in the portable form, which every operation has; the rules tell the form for another device. The
    prompt is longer than any number among the method's parameters, so that what begins after so many tokens does.

    Args:
        method: what to run.
        ratio: whether budgets are fractions of the prompt.
        heads: of the model.
    """
    length = _length(method)
    shape = Shape(length, QUESTION + STEPS, heads.layers, heads.dim)
    with forms.recording() as calls, forms.using("portable"):
        for found in _resolved(method, shape, ratio):
            # a drop may be due only every so many steps
            resolved = replace(found, eviction=found.eviction.eager())
            _decode(_snapshot(method, heads, length, _layers(resolved)), resolved, shape.max_new_tokens)
    return calls


def _length(method: Method) -> int:
    largest = max(_integers(method.describe()), default=0)
    return min(max(SHORTEST, 2 * largest), LONGEST)


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _integers(item)
    elif isinstance(value, int):
        yield value


def _resolved(method: Method, shape: Shape, ratio: bool) -> list[Resolved]:
    """The method at several budgets.

    Raises:
        UserError: it takes none of them.
    """
    if not method.needs_budget:
        return [method.resolve(shape, None)]
    found, refusals = [], []
    for part in FRACTIONS:
        budget = Budget(ratio=str(1 / part)) if ratio else Budget(tokens=shape.compressed // part)
        try:
            found.append(method.resolve(shape, budget))
        except UserError as error:  # a method may refuse small budgets
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def _layers(resolved: Resolved) -> int:
    """Layers until everything that the method does has been seen: some leave the first ones dense."""
    first: dict[tuple[bool, ...], int] = {}
    for layer, rule in enumerate(resolved.rules):
        first.setdefault((rule.keep is None, rule.read is None, rule.hold is None), layer)
    return max(first.values()) + 1


def _snapshot(method: Method, heads: Heads, length: int, layers: int) -> Snapshot:
    needs = method.needs
    draw = torch.Generator().manual_seed(0)
    window = length if "queries" in needs else min(length, max(1, method.parts()[0].window))
    position = torch.arange(length)
    found = []
    for layer in range(layers):
        k, v = (torch.randn(heads.kv, length, heads.dim, generator=draw) for _ in range(2))
        q = torch.randn(heads.kv * heads.group, window, heads.dim, generator=draw)
        snapshot = LayerSnapshot(k, v, q, layer, heads.layers, heads.dim**-0.5)
        if "attention_sum" in needs:
            snapshot.attention_sum_QT = attention_sum(q[:, -QUESTION:], k, snapshot.scaling)
        if "answer" in needs:
            snapshot.answer_sum_QT = attention_sum(q[:, -QUESTION:], k, snapshot.scaling)
        if "repeat" in needs:
            chosen = method.parts()[0].repeats
            assert chosen is not None
            scores = torch.rand(heads.kv, length, generator=draw)
            snapshot.repeats[chosen] = Repeat(chosen[1], {layer: scores})
        if "rope" in needs:
            snapshot.rope = lambda positions: _rotations(positions, heads.dim)
        if "boundaries" in needs:
            snapshot.boundaries_T = ((position % 4 == 3).int() + (position % 12 == 11).int()).to(torch.int8)
        found.append(snapshot)
    return Snapshot(found, length, torch.zeros(1), 0.0)


def _rotations(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    angles = (positions[:, None] * frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def _decode(snapshot: Snapshot, resolved: Resolved, room: int) -> None:
    """Compresses, reads a question, and takes some decode steps."""
    cache = build_batch(snapshot, resolved, 1, room)
    draw = torch.Generator().manual_seed(1)
    for count in (QUESTION, *[1] * STEPS):
        cache.set_selecting(count == 1)
        for layer, source in zip(cache.batch_layers, snapshot.layers, strict=True):
            heads, dim = source.heads, source.k_HTD.shape[-1]
            k, v = (torch.randn(1, heads, count, dim, generator=draw) for _ in range(2))
            layer.update(k, v)
            layer.attend(torch.randn(1, heads * source.group, count, dim, generator=draw), source.scaling)
