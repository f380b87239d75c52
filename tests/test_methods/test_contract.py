"""The contract of every registered method; a new method is tested without an edit here."""

from dataclasses import dataclass

import pytest
import torch
from kvbench_testing.cases import (
    DIM,
    EVERY,
    EVICTIONS,
    LAYERS,
    LENGTHS,
    NEW,
    SHAPES,
    keep,
    name_of,
    select,
    tensors,
)

from kvbench.methods import Budget, Eviction, LayerRule, Shape, build, register


def budgets(name, params, length):
    """1, window - 1, window, half of the prompt, and prompt and new tokens."""
    window = build({"method": name, **params}).parts()[0].window or 8
    return sorted({1, max(1, window - 1), window, max(1, length // 2), length + NEW})


def uses_budget(name, params):
    """Whether a budget changes anything; some methods have fixed sizes."""
    return build({"method": name, **params}).needs_budget


def resolve(name, params, length, tokens):
    return build({"method": name, **params}).resolve(Shape(length, NEW, LAYERS, DIM), Budget(tokens=tokens))


def well_formed(lists, rows, heads, length):
    """Checks lists of ascending, distinct prompt positions, one per head and row."""
    assert len(lists) == rows and all(len(row) in heads for row in lists)
    for positions in (one for row in lists for one in row):
        assert positions.dtype == torch.int64 and len(positions)
        assert bool((positions[1:] > positions[:-1]).all())
        assert int(positions[0]) >= 0 and int(positions[-1]) < length


def equal(a, b):
    return all(
        len(x) == len(y) and all(map(torch.equal, x, y)) for x, y in zip(a, b, strict=True)
    )  # fmt: skip


@pytest.mark.parametrize("case", EVERY, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES)
def test_kept_tokens(case, shape):
    name, params = case
    for length in LENGTHS:
        data = tensors(shape, length)
        for tokens in budgets(name, params, length):
            resolved = resolve(name, params, length, tokens)
            kept = keep(name, params, data, tokens, [0, 1])
            well_formed(kept, 2, set(SHAPES[shape]), length)
            expected = resolved.rules[0].keep or length
            if tokens == length + NEW and uses_budget(name, params):
                assert expected == length
            if resolved.rules[0].keep:
                # lists of query heads may share the budget of their KV head
                query_heads, kv_heads = SHAPES[shape]
                expected = resolved.eviction.own_tokens(expected, query_heads // kv_heads)
            for row in kept:
                counts = [len(positions) for positions in row]
                if name == "chunkkv" and params.get("mode") == "kvpress":
                    assert max(counts) <= expected
                elif resolved.eviction.ragged:
                    assert -1.5 <= sum(counts) / len(counts) - expected <= 0.5
                else:
                    assert set(counts) == {expected}
            # a second call with the rows swapped
            assert equal(keep(name, params, data, tokens, [1, 0]), kept[::-1])


@pytest.mark.parametrize("case", EVERY, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_read_at_a_step(case, shape):
    name, params = case
    for length in LENGTHS:
        data = tensors(shape, length)
        for tokens in budgets(name, params, length):
            slots = select(name, params, data, tokens, [0, 1])
            well_formed(slots, 2, set(SHAPES[shape]), length)
            read = resolve(name, params, length, tokens).rules[-1].read or length
            for row in slots:
                assert max(len(one) for one in row) <= read
                if tokens == length + NEW and uses_budget(name, params):
                    assert {len(one) for one in row} == {length}
            assert equal(select(name, params, data, tokens, [1, 0]), slots[::-1])


@pytest.mark.parametrize("case", EVICTIONS, ids=name_of)
@pytest.mark.parametrize("length", LENGTHS)
def test_budgets_of_the_layers_average_to_the_budget(case, length):
    name, params = case
    for tokens in budgets(name, params, length):
        rules = resolve(name, params, length, tokens).rules
        eviction = build({"method": name, **params}).parts()[0]
        if not eviction.at_prefill:
            assert all(rule.keep is None for rule in rules)
            if not eviction.needs_budget:
                continue
            rules = [LayerRule(keep=rule.hold) for rule in rules]
        mean = sum(rule.keep or length for rule in rules) / LAYERS
        expected = min(tokens, length)
        if name == "chunkkv" and params.get("mode") == "kvpress":
            chunk = build({"method": name, **params}).eviction.chunk
            # at least one chunk
            assert mean == (max(expected, chunk) if length >= chunk else expected)
        else:
            # integer steps from layer to layer may add half a token per layer
            assert expected <= mean <= expected + LAYERS / 2


def test_the_earlier_signature_of_keep_is_refused():
    class Earlier(Eviction):
        def keep(self, snapshot, scores, tokens, earlier, ratio=None):  # type: ignore[override]
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"Earlier.keep takes \(self, snapshot, scores, quota\)"):
        register("earlier")(dataclass(frozen=True)(Earlier))
