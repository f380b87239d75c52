"""A snapshot whose layers are in the host's memory but for one: the same numbers, and no more memory than that.

The device is the CPU that plays one with memory of its own. Compiled forms keep addresses, as no GPU's form does, so
that the portable ones run.
"""

import dataclasses

import pytest
import torch
from kvbench_testing.cases import EVERY, add_repetition, name_of
from transformers import AutoModelForCausalLM

from kvbench.engine import apart, continuations, decode, offload, prefill
from kvbench.engine.attention import register_attention
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.dense_answer import decode_dense_answer
from kvbench.engine.failures import DenseError, Failure
from kvbench.engine.offload import Offloaded
from kvbench.engine.prefill import Snapshot
from kvbench.kernels import forms
from kvbench.methods import Budget, Shape, build

LAYERS, NEW = 3, 5
PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(140)]
QUESTION = [9, 8, 7]
NEEDS = frozenset({"attention_sum", "queries", "rope"})
OPTIONS = DecodeOptions(NEW, batch_rows=12)
FORMATS = ["fp8_e4m3", "bf16", "int4_token", {"name": "int4", "residual": 32}]


@pytest.fixture(scope="module", autouse=True)
def portable():
    with forms.using("portable"):
        yield


@pytest.fixture(autouse=True)
def device_of_its_own(monkeypatch):
    monkeypatch.setattr(prefill, "worthwhile", lambda _: True)


@pytest.fixture
def poison(monkeypatch):
    """What is emptied is NaN instead: what reads it has other numbers, and does not end the process."""
    monkeypatch.setattr(offload, "emptied", lambda storage: storage.fill_(255))


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=LAYERS)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


@pytest.fixture(scope="module")
def clean(model):
    """A snapshot with everything that any method needs."""
    snapshot = prefill.prefill(model, PROMPT[:-1], 64, needs=NEEDS)
    decode_dense_answer(model, snapshot, QUESTION, PROMPT[-1], OPTIONS)
    add_repetition(snapshot.layers)
    position = torch.arange(snapshot.length)
    for layer in snapshot.layers:
        layer.boundaries_T = ((position % 4 == 3).int() + (position % 12 == 11).int()).to(torch.int8)
    return snapshot


def copied(snapshot: Snapshot) -> Snapshot:
    tensors = ("k_HTD", "v_HTD", "q_QWD", "attention_sum_QT")
    layers = [
        dataclasses.replace(layer, **{name: getattr(layer, name).clone() for name in tensors}, _windows={})
        for layer in snapshot.layers
    ]
    return dataclasses.replace(snapshot, layers=layers)


def resolved(entry, tokens=40):
    return build(entry).resolve(Shape(len(PROMPT) - 1, NEW, LAYERS, 16), Budget(tokens=tokens))


def on_device(snapshot: Snapshot) -> int:
    """Layers whose tensors are there."""
    return sum(layer.k_HTD.untyped_storage().nbytes() > 0 for layer in snapshot.layers)


def decoded(model, snapshot, cells, options=OPTIONS):
    found = decode_cells(model, snapshot, QUESTION, PROMPT[-1], cells, options)
    return [found.dense, *found.cells]


def same(model, clean, cells, options=OPTIONS):
    """Decode a snapshot that is on the device, and one that is not."""
    expected = decoded(model, copied(clean), cells, options)
    assert not any(isinstance(one, Failure) for one in expected)
    other = copied(clean)
    assert other.offload() and not other.offload()
    return decoded(model, other, cells, options) == expected


@pytest.mark.parametrize("case", EVERY, ids=name_of)
def test_every_method_has_the_same_numbers(model, clean, case, poison):
    name, params = case
    cell = resolved({"method": name, **params})
    assert same(model, clean, [] if cell.dense else [cell])


@pytest.mark.parametrize("stored", FORMATS, ids=lambda stored: str(stored))
def test_every_kind_of_format_has_the_same_numbers(model, clean, stored, poison):
    cells = [resolved({"method": name, "format": stored}) for name in ("snapkv", "quest")]
    assert same(model, clean, [*cells, resolved({"method": "streaming_llm"})])


@pytest.mark.parametrize("kl", [True, False])
def test_several_blocks_and_answers_that_part_have_the_same_numbers(model, clean, kl, poison):
    cells = [
        resolved({"method": name}, n) for name in ("snapkv", "quest", "h2o", "rocketkv_mt") for n in (30, 60)
    ]
    assert same(model, clean, cells, dataclasses.replace(OPTIONS, kl=kl, block_bytes=1))
    assert same(model, clean, cells, dataclasses.replace(OPTIONS, kl=kl))


def test_memory_is_given_back(model, clean, monkeypatch):
    """Without the poison: one layer at a time is there, whatever is done."""
    snapshot, most, original = copied(clean), [], Offloaded.use
    assert on_device(snapshot) == LAYERS
    snapshot.offload()
    assert on_device(snapshot) == 0

    def use(self, number):
        original(self, number)
        most.append(on_device(snapshot))

    monkeypatch.setattr(Offloaded, "use", use)
    cells = [resolved({"method": name}) for name in ("snapkv", "quest", "h2o", "rocketkv_mt", "topk_oracle")]
    expected = decoded(model, copied(clean), cells)
    assert decoded(model, snapshot, cells) == expected
    assert set(most) == {1}


@pytest.mark.parametrize("where", ["attend", "rows", "rewind", "check"])
def test_a_layer_that_is_read_and_not_there_is_seen(model, clean, poison, monkeypatch, where):
    """The comparison fails wherever `use` is left out."""
    from kvbench.engine.packed import PackedLayer

    cells = [resolved({"method": name}, n) for name in ("snapkv", "quest", "h2o") for n in (30, 60)]
    if where == "attend":
        original = PackedLayer.attend

        def attend(self, *args):
            use, self.use = self.use, lambda: None
            try:
                return original(self, *args)
            finally:
                self.use = use

        monkeypatch.setattr(PackedLayer, "attend", attend)
    elif where == "rewind":
        from kvbench.engine.forced import Rows

        original_rewind = Rows.rewind

        def rewind(self, counts):
            uses = [layer.use for layer in self.cache.packed_layers]
            for layer in self.cache.packed_layers:
                layer.use = lambda: None
            # what is fed again inside of it is on the device
            feed = self.feed

            def fed(*args, **kwargs):
                for layer, use in zip(self.cache.packed_layers, uses, strict=True):
                    layer.use = use
                return feed(*args, **kwargs)

            self.feed = fed
            try:
                original_rewind(self, counts)
            finally:
                self.feed = feed
                for layer, use in zip(self.cache.packed_layers, uses, strict=True):
                    layer.use = use

        monkeypatch.setattr(Rows, "rewind", rewind)
    else:
        calls = []
        original_in_use = Snapshot.in_use

        def in_use(self):
            calls.append(1)
            # the first of a prompt is the check of what is finite
            if (len(calls) == 1) == (where == "check"):
                return iter(self.layers)
            return original_in_use(self)

        monkeypatch.setattr(Snapshot, "in_use", in_use)
    snapshot = copied(clean)
    snapshot.offload()
    try:
        found = decoded(model, snapshot, cells)
    except (DenseError, ArithmeticError, AssertionError):
        return
    assert found != decoded(model, copied(clean), cells)


# --- when


def refusing(monkeypatch, unless, module=decode, name="blocks"):
    """Memory runs out unless something holds; what was asked for, and whether the snapshot was on the device."""
    asked, original = [], getattr(module, name)

    def blocks(snapshot, cells, room, limit=None):
        asked.append((len(cells), limit, snapshot.offloaded is None))
        for part in original(snapshot, cells, room, limit):
            if not unless(snapshot, cells, part):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            yield part

    monkeypatch.setattr(module, name, blocks)
    return asked


def group(model, snapshot, cells):
    return apart.decode_apart(model, snapshot, QUESTION, PROMPT[-1], cells, OPTIONS)


def test_the_snapshot_goes_to_the_host_where_one_cell_at_a_time_does_not_fit(model, clean, monkeypatch):
    cells = [resolved({"method": name}) for name in ("snapkv", "quest", "h2o")]
    expected = decoded(model, copied(clean), cells)
    asked = refusing(monkeypatch, lambda snapshot, *_: snapshot.offloaded is not None)
    found = group(model, copied(clean), cells)
    assert [found.dense, *found.cells] == expected
    assert asked == [(3, None, True), (3, 1, True), (3, 1, False)]


def test_a_cpu_has_no_other_memory_to_move_it_to(model, clean, monkeypatch):
    monkeypatch.undo()
    cells = [resolved({"method": name}) for name in ("snapkv", "quest")]
    asked = refusing(monkeypatch, lambda snapshot, *_: snapshot.offloaded is not None)
    found = group(model, copied(clean), cells)
    assert [one.kind for one in found.cells] == ["out_of_memory"] * 2
    assert all(on_device for *_, on_device in asked) and asked[:2] == [(2, None, True), (2, 1, True)]
    assert "host" not in found.cells[0].reason


def test_what_does_not_fit_then_either_is_a_failure_with_its_number(model, clean, monkeypatch):
    cells = [resolved({"method": name}) for name in ("snapkv", "quest", "h2o")]
    expected = decoded(model, copied(clean), cells)
    refusing(
        monkeypatch,
        lambda snapshot, cells, part: snapshot.offloaded and cells[part[0]].selection.name != "quest",
    )
    found = group(model, copied(clean), cells)
    assert [found.dense, found.cells[0], found.cells[2]] == [expected[0], expected[1], expected[3]]
    failed = found.cells[1]
    assert failed.kind == "out_of_memory" and failed.reason.startswith(
        "CUDA out of memory. Tried to allocate 2.00 GiB; alone it takes about "
    )
    assert failed.reason.endswith(
        " bytes beside the prompt's 106,752, which is in the host's memory but for a layer"
    )


def test_dense_that_does_not_fit_says_what_it_takes(model, clean, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decode, "decode_dense", full)
    with pytest.raises(
        DenseError, match=r"alone it takes about 6,144 bytes beside the prompt's 106,752, which is in"
    ):
        group(model, copied(clean), [resolved({"method": "snapkv"})])


def test_a_host_without_the_room_is_no_other_error(model, clean, monkeypatch):
    def full(layers):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(prefill, "Offloaded", full)
    snapshot = copied(clean)
    assert not snapshot.offload() and snapshot.offloaded is None and on_device(snapshot) == LAYERS


def test_texts_are_judged_with_the_snapshot_in_the_hosts_memory(model, clean, monkeypatch):
    cells, texts = [resolved({"method": name}) for name in ("snapkv", "quest", "h2o")], [[5, 6, 7], [8, 9]]

    def judged(snapshot):
        found = continuations.judge_cells(model, snapshot, QUESTION, PROMPT[-1], cells, texts)
        return [found.dense, *found.cells]

    expected, original, asked = judged(copied(clean)), continuations.Rows, []

    def rows(model, snapshot, cells, *args, **kwargs):
        asked.append((len(cells), snapshot.offloaded is None))
        if snapshot.offloaded is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, snapshot, cells, *args, **kwargs)

    monkeypatch.setattr(continuations, "Rows", rows)
    assert judged(copied(clean)) == expected
    assert asked == [(4, True), (1, True), (1, False), (2, False), (2, False), (2, False)]
