"""Bytes measured on the tensors of every registered method equal those of its formula."""

import math

import pytest
import torch
from kvbench_testing.cases import DIM, EVERY, NEW, SHAPES, name_of, tensors

from kvbench.engine.compress import make_lanes
from kvbench.engine.raw import _rotation
from kvbench.kernels.attention_sum import attention_sum
from kvbench.methods import Budget, LayerSnapshot, Quota, Shape, build, registry

LAYERS = 4


def layer_of(shape, length):
    """The last of four layers of a prompt, with all that methods may need."""
    q, k, v, rope, boundaries = tensors(shape, length)
    layer = LayerSnapshot(k[0], v[0], q[0], LAYERS - 1, LAYERS, DIM**-0.5)
    layer.attention_sum_QT = layer.answer_sum_QT = attention_sum(q[0], k[0], layer.scaling)
    layer.rope, layer.boundaries_T = _rotation(*rope), boundaries[0]
    return layer


@pytest.mark.parametrize("case", EVERY, ids=name_of)
@pytest.mark.parametrize("length", [331, 1000])
def test_measured_bytes_are_those_of_the_formula(case, length):
    name, params = case
    layer, method = layer_of("gqa3", length), build({"method": name, **params})
    resolved = method.resolve(Shape(length, NEW, LAYERS, DIM), Budget(tokens=length // 2))
    rule, eviction = resolved.rules[-1], resolved.eviction
    kept = carried = None
    if rule.keep is not None:
        scores = eviction.scores(layer)
        kept = eviction.keep(layer, scores, Quota(rule.keep))
        carried = eviction.carry(layer, scores, kept)
    lanes = make_lanes(layer, resolved, rule, kept, slice(0, 1), NEW, carried=carried)
    heads = SHAPES["gqa3"][1]
    counts = [length] * heads if kept is None else [len(positions) for positions in kept.positions]
    known = {"T": length, "M": NEW, "D": DIM, "element": 4, "keep": sum(counts) / heads, "ceil": math.ceil}
    # queries are held only while tokens may be dropped
    known |= {"min": min, "G": 3, "window": eviction.window if rule.hold is not None else 0}
    known["page"] = getattr(resolved.selection, "page", None)
    expected = heads * eval(registry()[name].bytes_formula.partition(";")[0], known)
    if kept is not None and kept.members is not None:
        expected += sum(members.numel() for members in kept.members)
    assert sum(lane.resident_bytes()[0] for lane in lanes) == pytest.approx(expected)


def test_ragged_heads_take_no_more_than_they_keep():
    layer = layer_of("mha", 331)
    cell = build({"method": "adakv"}).resolve(Shape(331, NEW, LAYERS, DIM), Budget(tokens=100))
    kept = cell.eviction.keep(layer, cell.eviction.scores(layer), Quota(100))
    lanes = make_lanes(layer, cell, cell.rules[0], kept, slice(0, 1), NEW)
    assert len({len(positions) for positions in kept.positions}) > 1
    assert len(lanes) == 4 and torch.tensor([lane.kept for lane in lanes]).sum() <= 4 * 100.5
