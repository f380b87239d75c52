"""A snapshot in a file is bit by bit what was written, or is refused."""

import json
import os
import resource
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kvbench.config.errors import UserError
from kvbench.engine.attention import register_attention
from kvbench.engine.prefill import prefill
from kvbench.engine.snapshot_file import DamagedError, load, save, size

PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(90)]
TENSORS = ("k_HTD", "v_HTD", "q_QWD", "attention_sum_QT")


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=2)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


@pytest.fixture(scope="module")
def snapshot(model):
    return prefill(model, PROMPT, 32, needs=frozenset({"attention_sum"}))


def same(one, other):
    assert torch.equal(one.logits, other.logits)
    assert (one.length, one.seconds, one.rope_until) == (other.length, other.seconds, other.rope_until)
    assert len(one.layers) == len(other.layers)
    for a, b in zip(one.layers, other.layers, strict=True):
        assert (a.layer, a.num_layers, a.scaling) == (b.layer, b.num_layers, b.scaling)
        for name in TENSORS:
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None), name
            if x is not None:
                # bits, not values: -0.0 is not 0.0
                assert x.dtype == y.dtype and x.shape == y.shape and x.stride() == y.stride(), name
                assert x.flatten().view(torch.uint8).equal(y.flatten().view(torch.uint8)), name
                assert y.data_ptr() % 64 == 0, "as torch allocates"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("needs", [frozenset(), frozenset({"attention_sum", "queries"})])
def test_what_is_read_is_what_was_written(tiny_model_dir, tmp_path, dtype, needs):
    folder = tiny_model_dir("llama", group=3, layers=2)
    made = {"attn_implementation": register_attention(), "dtype": dtype}
    model = AutoModelForCausalLM.from_pretrained(folder, **made).eval()
    first = prefill(model, PROMPT, 7, needs=needs)
    save(tmp_path / "a.safetensors", first, "key")
    same(first, load(tmp_path / "a.safetensors", model, "key"))
    # the tensors are nearly all of it
    stored = (tmp_path / "a.safetensors").stat().st_size
    assert size(first) < stored < size(first) + 3000
    assert os.listdir(tmp_path) == ["a.safetensors"]


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def facts(path, change):
    """The same tensors with other facts, and the checksum of before."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, change(metadata))


DAMAGES = {
    "a bit": flipped,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "cut to its head": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "no safetensors": lambda path: path.write_text("{}"),
    "other tensors": lambda path: save_file({"a": torch.zeros(3)}, path),
    "other length": lambda path: facts(path, lambda m: m | {"facts": m["facts"].replace("90", "91")}),
    "no facts": lambda path: facts(path, lambda m: {"sha256": m["sha256"]}),
    "no checksum": lambda path: facts(path, lambda m: {"facts": m["facts"]}),
    "other form": lambda path: facts(path, lambda m: {"facts": '{"form": 2}', "sha256": m["sha256"]}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line(model, snapshot, tmp_path, name):
    path = tmp_path / "a.safetensors"
    save(path, snapshot, "key")
    DAMAGES[name](path)
    with pytest.raises(DamagedError) as error:
        load(path, model, "key")
    assert len(str(error.value).splitlines()) == 1


def test_a_newer_form_is_refused(model, snapshot, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    monkeypatch.setattr("kvbench.engine.snapshot_file.FORM", 2)
    save(path, snapshot, "key")
    monkeypatch.undo()
    with pytest.raises(DamagedError, match="its form is 2, not 1"):
        load(path, model, "key")


def test_a_file_of_other_tokens_is_refused(model, snapshot, tmp_path):
    save(tmp_path / "a.safetensors", snapshot, "key")
    with pytest.raises(DamagedError, match="other tokens or settings"):
        load(tmp_path / "a.safetensors", model, "other")


def test_names_shapes_and_facts_count_in_the_checksum(model, snapshot, tmp_path):
    """Two tensors of one size that changed places, and a fact that did, have every byte that was written."""
    path = tmp_path / "a.safetensors"
    save(path, snapshot, "key")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["keys.0"], tensors["values.0"] = tensors["values.0"], tensors["keys.0"]
    save_file(tensors, path, metadata)
    with pytest.raises(DamagedError, match="checksum"):
        load(path, model, "key")
    save(path, snapshot, "key")
    facts(path, lambda m: m | {"facts": json.dumps(json.loads(m["facts"]) | {"seconds": 0.0})})
    with pytest.raises(DamagedError, match="checksum"):
        load(path, model, "key")


def test_what_is_not_there_or_cannot_be_written_is_an_error_of_its_own(model, snapshot, tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.safetensors", model, "key")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    was = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        with pytest.raises(UserError, match=r"^cannot write [^\n]+: [^\n]+$"):
            save(tmp_path / "a.safetensors", snapshot, "key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, was)
    assert os.listdir(tmp_path) == []
