"""Loading: families, errors, dtype, device, fingerprint."""

import json
import os
import shutil
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from kvbench.config.errors import UserError
from kvbench.config.typed import build
from kvbench.models import load
from kvbench.models.fingerprint import fingerprint
from kvbench.models.load import ModelConfig, load_model


@pytest.fixture
def model_copy(tiny_model_dir, tmp_path: Path) -> Path:
    """A folder of a tiny Llama that the test may spoil."""
    return Path(shutil.copytree(tiny_model_dir(), tmp_path / "copy"))


def edit_config(folder: Path, **entries) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


@pytest.mark.parametrize("family", load.FAMILIES)
def test_every_family_loads_and_runs(family, tiny_model_dir, private_cache):
    loaded = load_model(ModelConfig(path=str(tiny_model_dir(family)), device="cpu"))
    assert loaded.model.config.model_type == family
    assert (loaded.name, loaded.device.type, loaded.dtype, loaded.attention) == (
        "model",
        "cpu",
        torch.float32,
        "sdpa",
    )
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.eos_ids == {loaded.tokenizer.convert_tokens_to_ids("<|end|>")}
    ids = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "é?"}], return_tensors="pt")
    logits = loaded.model(**ids).logits
    assert logits.shape[-1] == len(loaded.tokenizer) and logits.isfinite().all()
    assert loaded.model.dtype == torch.float32 and len(loaded.fingerprint) == 16


def test_attention_implementation_and_dtype_reach_the_model(tiny_model_dir, private_cache):
    cfg = ModelConfig(name="mine", path=str(tiny_model_dir()), dtype="bfloat16", device="cpu")
    loaded = load_model(cfg, attn_implementation="eager")
    assert loaded.name == "mine"
    assert loaded.attention == loaded.model.config._attn_implementation == "eager"
    assert loaded.model.dtype == loaded.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "name", [f.name for f in resources.files("kvbench.conf").joinpath("model").iterdir()]
)
def test_model_entries_are_whole(name):
    text = resources.files("kvbench.conf").joinpath("model", name).read_text()
    data = yaml.safe_load(text)
    cfg = build(ModelConfig, data, "model")
    assert f"{cfg.name}.yaml" == name
    # only written keys can be overridden on the command line
    assert set(data) == set(vars(cfg))


def test_a_path_on_top_of_the_default_model_is_another_model():
    assert ModelConfig(path="/somewhere/Some-Model/").name == "Some-Model"
    assert ModelConfig(name="mine", path="/somewhere/Some-Model").name == "mine"


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ({"dtype": "fp8"}, ("model.dtype", "bfloat16")),
        ({"attention": "flash"}, ("model.attention", "flash_attention_2")),
        ({"device": "mps"}, ("model.device=mps", "cuda:N")),
        ({"device": "cuda:x"}, ("model.device=cuda:x", "auto")),
        ({"prefill_chunk": 0}, ("model.prefill_chunk=0", "at least 1")),
        ({"name": "gpt5"}, ("model.name=gpt5", "model.path", "smollm2_135m")),
    ],
)
def test_bad_values_give_one_line(entries, parts):
    with pytest.raises(UserError) as error:
        build(ModelConfig, entries, "model")
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)


def expect(cfg: ModelConfig, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        load_model(cfg)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)


def test_missing_folder(tmp_path):
    expect(ModelConfig(path=str(tmp_path / "no")), "model.path=", "no such folder")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.bin").touch()
    expect(ModelConfig(path=str(tmp_path / "model.bin")), "no such folder")


def test_folder_without_config(tmp_path):
    expect(ModelConfig(path=str(tmp_path)), "config.json")


def test_error_for_a_missing_hub_model_names_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    expect(
        ModelConfig(name="x", hub_id="nobody/nothing"), "nobody/nothing", str(tmp_path), "model.download=true"
    )


def test_malformed_hub_id(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    expect(ModelConfig(name="x", hub_id="a/b/c"), "model.hub_id=a/b/c")


def test_hub_model_in_the_cache(tiny_model_dir, tmp_path, monkeypatch, private_cache):
    repo = tmp_path / "models--some--model"
    shutil.copytree(tiny_model_dir(), repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    from huggingface_hub import snapshot_download

    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *a, **k: snapshot_download(*a, cache_dir=tmp_path, **k)
    )
    loaded = load_model(ModelConfig(name="x", hub_id="some/model", device="cpu"))
    assert loaded.fingerprint == fingerprint(tiny_model_dir())


def test_other_family(model_copy):
    edit_config(model_copy, model_type="gpt2")
    expect(ModelConfig(path=str(model_copy)), "'gpt2'", "llama, mistral, qwen2, qwen3")


def test_pickled_weights_are_not_loaded(model_copy):
    (model_copy / "model.safetensors").rename(model_copy / "pytorch_model.bin")
    expect(ModelConfig(path=str(model_copy)), "model.safetensors is missing", "pickled")


def test_missing_shard(model_copy):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    expect(ModelConfig(path=str(model_copy)), "model-00001-of-00002.safetensors is missing (2 of 2")


def test_no_chat_template(model_copy, private_cache):
    (model_copy / "chat_template.jinja").unlink()
    expect(ModelConfig(path=str(model_copy)), "model.chat_template=false")
    assert load_model(ModelConfig(path=str(model_copy), chat_template=False, device="cpu")).name == "copy"


def test_code_of_a_checkpoint_is_not_run(model_copy):
    edit_config(model_copy, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (model_copy / "evil.py").write_text("raise SystemExit('ran')")
    assert load_model(ModelConfig(path=str(model_copy), device="cpu")).model.config.model_type == "llama"


def test_flash_attention_where_it_cannot_run(tiny_model_dir):
    expect(
        ModelConfig(path=str(tiny_model_dir()), attention="flash_attention_2", device="cpu"),
        "model.attention=",
    )


def test_cuda_device_that_is_not_there(tiny_model_dir):
    expect(ModelConfig(path=str(tiny_model_dir()), device="cuda:99"), "model.device=cuda:99", "auto, cpu")


def test_auto_dtype(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    stored = SimpleNamespace(dtype=torch.float16)

    def pick(device, config=stored, dtype="auto"):
        return load.pick_dtype(ModelConfig(name="x", path="x", dtype=dtype), config, tmp_path, device)

    assert pick(cpu) == torch.float32
    assert pick(cuda) == torch.float16
    assert pick(cpu, SimpleNamespace(dtype=None)) == torch.float32
    assert pick(cpu, dtype="bfloat16") == torch.bfloat16
    monkeypatch.setattr(load, "BIG_CHECKPOINT", 99)
    assert pick(cpu) == torch.bfloat16
    assert pick(cpu, SimpleNamespace(dtype=torch.float32)) == torch.float32


def test_fingerprint_is_of_the_content(model_copy, tiny_model_dir, private_cache):
    first = fingerprint(model_copy)
    assert first == fingerprint(tiny_model_dir()) != fingerprint(tiny_model_dir(seed=1))
    edit_config(model_copy, transformers_version="0.0.0", _name_or_path="elsewhere")
    (model_copy / "README.md").write_text("not of the model")
    assert fingerprint(model_copy) == first
    edit_config(model_copy, rms_norm_eps=1e-3)
    assert fingerprint(model_copy) != first


def test_fingerprint_samples_large_files(tmp_path, private_cache, monkeypatch):
    monkeypatch.setattr("kvbench.models.fingerprint.BLOCK", 16)
    file = tmp_path / "model.safetensors"
    content = bytearray((1000).to_bytes(8, "little") + os.urandom(100_000))
    seen = set()
    for position in (None, 8, 1007, len(content) - 1):
        if position is not None:
            content[position] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(len(seen), len(seen)))
        seen.add(fingerprint(tmp_path))
    assert len(seen) == 4


def test_fingerprint_is_kept(model_copy, private_cache, monkeypatch):
    first = fingerprint(model_copy)
    monkeypatch.setattr("kvbench.models.fingerprint._digest", lambda file: pytest.fail("read again"))
    assert fingerprint(model_copy) == first
