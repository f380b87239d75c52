"""NaN and infinities planted anywhere: the cells that they reach fail, and the others keep their numbers."""

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kvbench_testing.cases import EVERY, add_repetition, name_of
from transformers import AutoModelForCausalLM

from kvbench.engine import forced
from kvbench.engine.attention import register_attention
from kvbench.engine.blocks import blocks
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.dense_answer import decode_dense_answer
from kvbench.engine.failures import DenseError, Failure
from kvbench.engine.forced import PASS_ROWS
from kvbench.engine.prefill import PrefillLayer, prefill
from kvbench.methods import Budget, Shape, build

LAYERS, NEW, ROWS = 3, 4, 12
PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(140)]
NEEDS = frozenset({"attention_sum", "queries", "rope"})
OPTIONS = DecodeOptions(NEW, batch_rows=ROWS)
FORMATS = [
    "native", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int4_token", {"name": "turboquant", "plain_layers": 1},
    *({"name": name, "residual": 32} for name in ("int8", "int4", "int2")),
]  # fmt: skip
VALUES = [math.nan, math.inf, -math.inf]


@pytest.fixture(autouse=True, scope="module")
def one_size():
    """Passes of known tokens and of free steps differ in their size, by which `Planted` tells them apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forced, "pass_sizes", lambda _, largest: [largest])
        yield


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=LAYERS)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


@pytest.fixture(scope="module")
def clean(model):
    """A snapshot with everything that any method needs."""
    snapshot = prefill(model, PROMPT[:-1], 64, needs=NEEDS)
    decode_dense_answer(model, snapshot, [], PROMPT[-1], OPTIONS)
    add_repetition(snapshot.layers)
    position = torch.arange(snapshot.length)
    for layer in snapshot.layers:
        layer.boundaries_T = ((position % 4 == 3).int() + (position % 12 == 11).int()).to(torch.int8)
    return snapshot


def rolls(name, params):
    return build({"method": name, **params}).parts()[0].steps


def cell_of(case, stored):
    """A method with a format, or None where they do not go together."""
    name, params = case
    if rolls(name, params) and not build({"format": stored}).format.rolls:
        return None
    entry = {"method": name, **params} | ({} if stored == "native" else {"format": stored})
    shape = Shape(len(PROMPT) - 1, NEW, LAYERS, 16)
    resolved = build(entry).resolve(shape, Budget(tokens=40))
    return None if resolved.dense else resolved


def copied(snapshot):
    layers = [
        dataclasses.replace(layer, k_HTD=layer.k_HTD.clone(), v_HTD=layer.v_HTD.clone(), q_QWD=layer.q_QWD.clone())
        for layer in snapshot.layers
    ]  # fmt: skip
    return dataclasses.replace(snapshot, layers=layers, logits=snapshot.logits.clone())


def run(model, snapshot, cells):
    with torch.inference_mode():
        return decode_cells(model, copied(snapshot), [], PROMPT[-1], cells, OPTIONS)


class Planted:
    """A model in which a number of one token is not finite.

    Args:
        model: the model.
        row: of a cell in its block; None for dense.
        forced: along dense's answer, else where the cell decodes freely or dense's answer is drafted.
        step: decode step.
        layer: where keys, values and queries are planted.
        where: k, v, q or logits.
        value: NaN or an infinity.
    """

    def __init__(self, model, row, forced, step, layer, where, value):
        self.model, self.device, self.config = model, model.device, model.config
        self.row, self.forced, self.step = row, forced, step
        self.layer, self.where, self.value = layer, where, value
        self.dense = None

    def __call__(self, **kwargs):
        return self.call(self.model, **kwargs)

    def base_model(self, **kwargs):
        return self.call(self.model.base_model, **kwargs)

    def call(self, part, **kwargs):
        cache = kwargs["past_key_values"]
        index = self.index(cache, len(kwargs["input_ids"]))
        if index is None:
            return part(**kwargs)
        layer = cache.layers[self.layer]
        update, attend = layer.update, layer.attend

        def updated(k, v, *args, **kwargs):
            if self.where in ("k", "v"):
                (k if self.where == "k" else v)[index, 1, 0, 5] = self.value
            return update(k, v, *args, **kwargs)

        def attended(q, scaling):
            if self.where == "q":
                q[index, :, 0, 5] = self.value
            return attend(q, scaling)

        layer.update, layer.attend = updated, attended
        try:
            result = part(**kwargs)
        finally:
            del layer.update, layer.attend
        if self.where == "logits" and "logits" in result:
            result.logits[index, -1, 17] = self.value
        return result

    def index(self, cache, size):
        """The token's place in a pass, or None."""
        if self.dense is None:
            # dense's answer comes first
            self.dense = cache
        if (cache is self.dense) != (self.row is None) or (size == PASS_ROWS) != self.forced:
            return None
        now = cache.packed_layers[0].current
        tokens = list(zip(now.rows, now.slots, strict=True))
        at = (self.row or 0, self.step)
        return tokens.index(at) if at in tokens else None


def same(found, expected):
    assert isinstance(found, type(expected))
    if not isinstance(expected, Failure):
        assert found.ids == expected.ids and found.kl == expected.kl and found.agree == expected.agree


def check_step(model, clean, cells, expected, target, forced, layer, step, where, value):
    """Plant in a decode step of one row: its cell fails, with a row that is dense all do, and nothing else changes."""
    first, steps = 0, len(expected.dense.ids)
    if target is not None and not forced:
        ids, dense = expected.cells[target].ids, expected.dense.ids
        # free steps begin behind the first token that differs
        first = next((n for n, token in enumerate(ids) if token != dense[n]), NEW) + 1
        steps = len(ids)
    # what a draft holds is computed again
    counts = first <= step < steps and (forced or target is not None)
    # cells with one eviction stand next to each other
    row = None if target is None else next(blocks(clean, cells, NEW)).index(target)
    try:
        found = run(Planted(model, row, forced, step, layer, where, value), clean, cells)
    except DenseError as error:
        failure = error.failure
        found = None
    if found is None:
        assert target is None and failure.kind == "not_finite" and counts
        return
    assert target is not None or not counts, "dense took no notice"
    for number, (now, before) in enumerate(zip(found.cells, expected.cells, strict=True)):
        if number == target and counts:
            assert isinstance(now, Failure) and now.kind == "not_finite", (now, where, value)
        else:
            same(now, before)
    same(found.dense, expected.dense)


CELLS = [(case, stored) for case in EVERY for stored in FORMATS if cell_of(case, stored) is not None]
WHERE = ["k", "v", "q", "logits"]


@settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
@given(
    chosen=st.lists(st.sampled_from(range(len(CELLS))), min_size=1, max_size=7), target=st.integers(-1, 6),
    forced=st.booleans(), layer=st.integers(0, LAYERS - 1), step=st.integers(0, NEW - 1),
    where=st.sampled_from(WHERE), value=st.sampled_from(VALUES),
)  # fmt: skip
def test_a_decode_step_that_is_not_finite_fails_its_cell_alone(
    model, clean, chosen, target, forced, layer, step, where, value
):
    cells = [cell_of(*CELLS[n]) for n in chosen]
    which = None if target < 0 else target % len(cells)
    expected = run(model, clean, cells)
    check_step(model, clean, cells, expected, which, forced, layer, step, where, value)


@pytest.mark.slow
@pytest.mark.parametrize("stored", FORMATS, ids=str)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("forced", [False, True])
def test_every_method_and_format_fails_where_a_step_is_not_finite(model, clean, stored, where, forced):
    cells = [cell for case in EVERY if (cell := cell_of(case, stored)) is not None]
    expected = run(model, clean, cells)
    for target in range(len(cells)):
        layer, step, value = target % LAYERS, target // LAYERS % NEW, VALUES[target % len(VALUES)]
        check_step(model, clean, cells, expected, target, forced, layer, step, where, value)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("where", ["k_HTD", "v_HTD", "q_QWD", "attention_sum_QT", "answer_sum_QT", "logits"])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_snapshot_that_is_not_finite_fails_all_cells(model, clean, where, layer, value):
    """Even where no method would have read it, as a token that is evicted."""
    snapshot = copied(clean)
    with torch.inference_mode():
        if where == "logits":
            snapshot.logits[9] = value
        else:
            x = getattr(snapshot.layers[layer], where).clone()
            x[1, 20] = value
            setattr(snapshot.layers[layer], where, x)
    cells = [cell_of(("streaming_llm", {}), "fp8_e4m3"), cell_of(("knorm", {}), "native")]
    with pytest.raises(DenseError) as failed:
        decode_cells(model, snapshot, [], PROMPT[-1], cells, OPTIONS)
    assert failed.value.failure.kind == "not_finite" and failed.value.failure.stage == "prefill"
    name = "logits after the last token" if where == "logits" else f"of layer {layer}"
    assert name in failed.value.failure.reason


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("where", ["k", "v", "q"])
@pytest.mark.parametrize("token", [0, 70, len(PROMPT) - 2])
@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("chunk", [64, 1024])
def test_a_prefill_that_is_not_finite_is_seen_in_its_snapshot(
    model, monkeypatch, where, layer, token, value, chunk
):
    update, attend = PrefillLayer.update, PrefillLayer.attend
    seen = {}

    def is_target(self):
        return seen.setdefault(id(self), len(seen)) == layer

    def updated(self, k, v, *args, **kwargs):
        at = token - self.filled
        if is_target(self) and where in ("k", "v") and 0 <= at < k.shape[2]:
            (k if where == "k" else v)[0, 1, at, 5] = value
        return update(self, k, v, *args, **kwargs)

    def attended(self, q, scaling):
        at = token - (self.filled - q.shape[2])
        if is_target(self) and where == "q" and 0 <= at < q.shape[2]:
            q[0, :, at, 5] = value
        return attend(self, q, scaling)

    monkeypatch.setattr(PrefillLayer, "update", updated)
    monkeypatch.setattr(PrefillLayer, "attend", attended)
    # a query of the last layer that no window holds reaches nothing
    window = 64 if token > 0 and token != 70 else len(PROMPT) - 1
    snapshot = prefill(model, PROMPT[:-1], window, chunk)
    monkeypatch.undo()
    with pytest.raises(DenseError, match="not finite"):
        decode_cells(model, snapshot, [], PROMPT[-1], [], OPTIONS)


@pytest.mark.parametrize("case", EVERY, ids=name_of)
def test_no_method_sees_anything_but_finite_numbers_in_a_healthy_run(model, clean, case):
    """The checks do not fire by themselves, whatever methods mark with infinities."""
    for stored in ("native", "fp8_e4m3"):
        cell = cell_of(case, stored)
        if cell is not None:
            (found,) = run(model, clean, [cell]).cells
            assert not isinstance(found, Failure), found.reason
            assert found.kl is not None and math.isfinite(found.kl)
