"""Calibrated scales: what they are, and the checkpoint that holds them."""

import json

import pytest
import torch
from safetensors import safe_open

from kvbench.config.errors import UserError
from kvbench.config.numbers import NotFiniteError
from kvbench.models import kv_scales
from kvbench.models.load import ModelConfig, load_model

PROMPTS = [list(range(40)), list(range(100, 130))]


@pytest.fixture(scope="module")
def calibrated(tiny_model_dir):
    folder = tiny_model_dir(family="llama")
    model = load_model(ModelConfig(name="tiny", path=str(folder), device="cpu")).model
    return folder, model, kv_scales.calibrate(model, PROMPTS)


def test_scales_are_the_largest_magnitudes_over_all_prompts(calibrated):
    _, model, scales = calibrated
    assert set(scales) == {f"model.layers.{n}.self_attn.{k}_scale" for n in range(3) for k in "kv"}
    seen = {"k": 0.0, "v": 0.0}

    def watch(name):
        def hook(module, args, output):
            seen[name] = max(seen[name], float(output.abs().max()))

        return hook

    # values have no positions: the projection's output is what is cached
    attention = model.model.layers[1].self_attn
    handle = attention.v_proj.register_forward_hook(watch("v"))
    with torch.inference_mode():
        for ids in PROMPTS:
            model(torch.tensor([ids]))
    handle.remove()
    assert scales["model.layers.1.self_attn.v_scale"] == pytest.approx(seen["v"] / 448, rel=1e-5)


def test_keys_are_taken_after_rope(calibrated):
    _, model, scales = calibrated
    with torch.inference_mode():
        caches = [model(torch.tensor([ids]), use_cache=True).past_key_values for ids in PROMPTS]
    largest = max(float(cache.layers[2].keys.abs().max()) for cache in caches)
    assert scales["model.layers.2.self_attn.k_scale"] == pytest.approx(largest / 448, rel=1e-5)


def test_the_checkpoint_holds_scales_and_the_same_weights(calibrated, tmp_path):
    folder, _, scales = calibrated
    kv_scales.write_scales(folder, tmp_path / "scaled", scales)
    names = json.loads((tmp_path / "scaled" / kv_scales.INDEX).read_text())["weight_map"]
    with safe_open(folder / "model.safetensors", "pt") as before:
        assert set(names) == {*before.keys(), *scales}
        for name, file in names.items():
            with safe_open(tmp_path / "scaled" / file, "pt") as after:
                tensor = after.get_tensor(name)
            if name in scales:
                assert tensor.shape == () and float(tensor) == pytest.approx(scales[name])
            else:
                assert torch.equal(tensor, before.get_tensor(name))
    config = json.loads((tmp_path / "scaled" / "config.json").read_text())
    assert config["quantization_config"]["kv_cache_scheme"]["num_bits"] == 8
    assert not list(tmp_path.glob(".scaled*"))


def test_what_is_quantised_already_and_what_has_no_prompts_is_refused(calibrated, tmp_path):
    folder, model, scales = calibrated
    kv_scales.write_scales(folder, tmp_path / "scaled", scales)
    with pytest.raises(UserError, match="already quantised"):
        kv_scales.write_scales(tmp_path / "scaled", tmp_path / "twice", scales)
    with pytest.raises(UserError, match="calibration: no prompts"):
        kv_scales.calibrate(model, [])


def test_keys_that_are_not_finite_give_no_scale(calibrated, monkeypatch):
    """The largest of 0 and NaN is 0."""
    _, model, _ = calibrated
    projection = model.model.layers[1].self_attn.k_proj
    hook = projection.register_forward_hook(lambda *args: args[2] * float("nan"))
    with pytest.raises(NotFiniteError, match=r"layers\.1\.self_attn.k_scale is nan"):
        kv_scales.calibrate(model, PROMPTS)
    hook.remove()
