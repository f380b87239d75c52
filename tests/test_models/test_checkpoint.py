"""Damaged and ill-fitting checkpoints: every fault is one line that names the tensor or file."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kvbench.config.errors import UserError
from kvbench.models import checkpoint
from kvbench.models.load import FAMILIES, ModelConfig, load_model

UP = "model.layers.0.mlp.up_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _private(private_cache) -> None:
    """Fingerprints of spoilt copies stay out of the user's cache."""


@pytest.fixture
def folder(tiny_model_dir, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model_dir("llama", layers=1), tmp_path / "model"))


def load(folder: Path):
    return load_model(ModelConfig(path=str(folder), device="cpu"))


def refusal(folder: Path, *parts: str) -> str:
    with pytest.raises(UserError) as error:
        load(folder)
    text = str(error.value)
    assert all(part in text for part in (*parts, "model.path=")), text
    assert "\n" not in text and len(text) < 600
    return text


def change(folder: Path, how: Callable[[Tensors], Tensors]) -> None:
    file = folder / "model.safetensors"
    save_file(how(load_file(file)), file, {"format": "pt"})


def edit(folder: Path, name: str = "config.json", **entries) -> None:
    file = folder / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | entries))


def drop(tensors: Tensors, name: str) -> Tensors:
    return {key: value for key, value in tensors.items() if key != name}


def rename(tensors: Tensors, name: str) -> Tensors:
    return drop(tensors, name) | {name + "_old": tensors[name]}


def transpose(tensors: Tensors, name: str) -> Tensors:
    return tensors | {name: tensors[name].T.contiguous()}


def cut(tensors: Tensors, name: str) -> Tensors:
    return tensors | {name: tensors[name][:-1].clone()}


def retype(dtype: torch.dtype) -> Callable[[Tensors, str], Tensors]:
    return lambda tensors, name: tensors | {name: tensors[name].to(dtype)}


OTHER_TYPES = [
    torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float64,
    torch.complex64,
]  # fmt: skip
FAULTS = {f.__name__: f for f in (drop, rename, transpose, cut)} | {str(d): retype(d) for d in OTHER_TYPES}


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fault_of_any_single_tensor_names_it(family, fault, tiny_model_dir, tmp_path):
    folder = Path(shutil.copytree(tiny_model_dir(family, layers=1), tmp_path / "model"))
    sound = load_file(folder / "model.safetensors")
    assert len(sound) >= 12
    # every tensor of the first family; elsewhere those that the first does not have
    names = [n for n in sound if family == FAMILIES[0] or n.endswith((".bias", "q_norm.weight"))]
    for name in names:
        if fault == "transpose" and sound[name].dim() == 1:
            continue
        save_file(FAULTS[fault](sound, name), folder / "model.safetensors", {"format": "pt"})
        refusal(folder, name, "model.safetensors")


def test_the_sound_checkpoint_loads_without_a_warning(folder, caplog):
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert not caplog.records


@pytest.mark.parametrize(
    "prefix", ["base_model.model.", "base_model.", "transformer.", "module.", "_orig_mod."]
)
def test_prefixed_names(folder, prefix):
    change(folder, lambda tensors: {prefix + name: value for name, value in tensors.items()})
    refusal(folder, "is missing", prefix, "and")


@pytest.mark.parametrize("rename", [lambda name: name.removeprefix("model."), lambda name: "model." + name])
def test_the_prefix_of_the_base_model_may_be_left_out_or_repeated(folder, rename):
    expected = load(folder).model.state_dict()
    change(folder, lambda tensors: {rename(name): value for name, value in tensors.items()})
    found = load(folder).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_tensor_under_two_names(folder):
    change(folder, lambda tensors: tensors | {UP.removeprefix("model."): tensors[UP] + 1})
    refusal(folder, UP, "both")


@pytest.mark.parametrize(("family", "other"), [("llama", "qwen2"), ("qwen2", "llama"), ("qwen3", "llama")])
def test_weights_of_another_family(family, other, tiny_model_dir, tmp_path):
    folder = Path(shutil.copytree(tiny_model_dir(family, layers=1), tmp_path / "model"))
    edit(folder, model_type=other, architectures=None)
    refusal(folder, "model.layers.0.self_attn", "bias" if "qwen2" in (family, other) else "norm")


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ({"num_hidden_layers": 2}, ("model.layers.1.", "is missing")),
        ({"num_hidden_layers": 0}, ("model.layers.0.", "is unknown")),
        ({"vocab_size": 300}, ("[259, 48]", "[300, 48]")),
        ({"vocab_size": 258}, ("[259, 48]", "[258, 48]")),
        ({"num_key_value_heads": 1}, ("model.layers.0.self_attn.k_proj.weight", "[16, 48]")),
        ({"head_dim": 8}, ("model.layers.0.self_attn.",)),
        ({"attention_bias": True}, ("model.layers.0.self_attn.", ".bias is missing")),
        ({"tie_word_embeddings": True}, (HEAD, EMBEDDING, "tie_word_embeddings")),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ("quantised (gptq",)),
        ({"quantization_config": {"quant_method": "awq"}}, ("quantised (awq",)),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, ("bitsandbytes",)),
        ({"quantization_config": {"quant_method": "nobody_knows"}}, ("nobody_knows",)),
        ({"compression_config": {"format": "x"}}, ("quantised",)),
        ({"transformers_weights": "other.safetensors"}, ("transformers_weights",)),
        ({"rope_scaling": {"rope_type": "nobody_knows", "factor": 2.0}}, ("nobody_knows",)),
        ({"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": None}, ("factor",)),
        ({"rope_scaling": "yarn", "rope_parameters": None}, ("config.json",)),
        ({"hidden_size": "many"}, ("config.json", "hidden_size")),
        ({"hidden_size": None}, ("config.json",)),
        ({"hidden_act": "nobody_knows"}, ("nobody_knows",)),
        ({"num_attention_heads": 0}, ()),
        ({"num_hidden_layers": -1}, ()),
        ({"dtype": "float64"}, ("model.dtype=auto", "float64")),
        ({"dtype": "int8"}, ("int8",)),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_config_that_does_not_fit(folder, entries, parts):
    edit(folder, **entries)
    with pytest.raises(UserError) as error:
        load(folder)
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value), str(error.value)


def test_tied_weights(folder):
    edit(folder, tie_word_embeddings=True)
    sound = load_file(folder / "model.safetensors")
    for tied in (drop(sound, HEAD), sound | {HEAD: sound[EMBEDDING].clone()}):
        save_file(tied, folder / "model.safetensors", {"format": "pt"})
        model = load(folder).model
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(model.lm_head.weight, sound[EMBEDDING])
    save_file(drop(drop(sound, HEAD), EMBEDDING), folder / "model.safetensors", {"format": "pt"})
    refusal(folder, HEAD, "is missing", "1 more")


def test_the_rotary_frequencies_of_older_checkpoints_are_known(folder):
    change(folder, lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    load(folder)


def test_wider_tensors_among_16_bits(folder):
    norm = "model.norm.weight"
    change(folder, lambda t: {n: v if n == norm else v.bfloat16() for n, v in t.items()})
    assert load(folder).model.model.norm.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter(folder, name):
    (folder / name).write_text("{}")
    refusal(folder, name, "adapter", "merge")


def shard(folder: Path, parts: int = 2) -> dict[str, str]:
    """Spread the weights over files; returns the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{n + 1:05}-of-{parts:05}.safetensors" for n in range(parts)]
    index = {name: names[n % parts] for n, name in enumerate(sorted(tensors))}
    for file in names:
        part = {name: value for name, value in tensors.items() if index[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    write_index(folder, index)
    return index


def write_index(folder: Path, index) -> None:
    (folder / checkpoint.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_shards(folder):
    whole = load(folder)
    index = shard(folder)
    first, second = sorted(set(index.values()))
    assert torch.equal(load(folder).model.lm_head.weight, whole.model.lm_head.weight)
    write_index(folder, index | {"model.layers.9.nothing": first})
    refusal(folder, "model.layers.9.nothing", first, "does not hold it")
    write_index(folder, index | {UP: {first: second, second: first}[index[UP]]})
    refusal(folder, UP)
    write_index(folder, {name: file for name, file in index.items() if name != UP})
    refusal(folder, UP, index[UP], "does not list")
    write_index(folder, index)
    (folder / second).rename(folder / "away")
    refusal(folder, second, "is missing (1 of 2")
    (folder / "away").rename(folder / second)
    save_file(load_file(folder / second) | {UP: load_file(folder / index[UP])[UP] + 1}, folder / second)
    save_file(load_file(folder / first) | {UP: load_file(folder / index[UP])[UP]}, folder / first)
    refusal(folder, UP)


def test_a_tensor_in_two_shards(folder):
    index = shard(folder)
    for file in set(index.values()):
        save_file(load_file(folder / file) | {"twice": torch.ones(1)}, folder / file)
    with pytest.raises(UserError, match="twice"):
        checkpoint.read_entries(folder, "model")


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "{", "[" * 100_000],
)
def test_a_damaged_index(folder, text):
    (folder / checkpoint.INDEX).write_text(text)
    refusal(folder)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "weights.bin"])
def test_an_index_that_leaves_the_folder(folder, file):
    write_index(folder, {UP: file})
    refusal(folder, file)


def test_two_sets_of_weights(folder):
    single = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(single)
    refusal(folder, "both", "model.safetensors", checkpoint.INDEX)


def test_pickled_weights_beside_are_not_read(folder):
    (folder / "pytorch_model.bin").write_bytes(b"no weights")
    load(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n"
DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "pointer": lambda content: POINTER.encode(),
    "not utf-8": lambda content: b"\xff\xfe" + content,
    "brackets": lambda content: b"[" * 100_000,
    "deep": lambda content: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "list": lambda content: b"[1]",
    "NaN": lambda content: content.rstrip()[:-1] + b', "extra_number": NaN}',
    "infinity": lambda content: content.rstrip()[:-1] + b', "extra_number": -Infinity}',
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
def test_a_damaged_json_file(folder, name, damage):
    edit(folder, name)
    file = folder / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    refusal(folder, name)


@pytest.mark.parametrize("damage", ["cut", "empty", "pointer", "not utf-8", "brackets"])
def test_damaged_weights(folder, damage):
    file = folder / "model.safetensors"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    refusal(folder, file.name, "LFS" if damage == "pointer" else "damaged")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, 2**31), junk=st.binary(max_size=4))
def test_weights_cut_anywhere(tiny_model_dir, tmp_path, size, junk):
    source = tiny_model_dir("llama", layers=1)
    content = (source / "model.safetensors").read_bytes()
    head = int.from_bytes(content[:8], "little") + 8
    # half of the cuts in the head
    length = size % head if size % 2 else size % len(content)
    (tmp_path / "model.safetensors").write_bytes(content[:length] + junk)
    with pytest.raises(UserError, match=r"model\.safetensors") as error:
        checkpoint.read_entries(tmp_path, "model")
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_model(folder):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 700, "content": "<|far|>"})
    file.write_text(json.dumps(content))
    refusal(folder, "tokenizer is of another model", "<|far|>")


def test_a_padding_token_that_the_tokenizer_alone_has(folder):
    loaded = load(folder)
    loaded.tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    loaded.tokenizer.save_pretrained(folder)
    assert load(folder).tokenizer.pad_token_id == 259


def test_a_warning_of_transformers_is_passed_on(folder, caplog):
    edit(folder, rope_parameters={"rope_type": "linear", "factor": 0.5, "rope_theta": 1e4})
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert any("factor" in record.getMessage() for record in caplog.records)
