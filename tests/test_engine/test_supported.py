"""What the attention hook and the probe refuse, each planted in a model that works."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    sliding_window_causal_mask_function,
)

import kvbench
from kvbench.config.errors import UserError
from kvbench.engine import attention
from kvbench.engine.attention import _beyond_causal, register_attention
from kvbench.engine.prefill import prefill
from kvbench.engine.supported import ProbeLayer, check_model
from kvbench.models.load import FAMILIES, ModelConfig, load_model

LENGTH, NEW = 20, 4


def make(family="llama", **entries):
    config = AutoConfig.for_model(
        family, vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, pad_token_id=0, **entries,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def hooked(model):
    model.set_attn_implementation(register_attention())
    return model


def dense(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kvbench.cache(model, "dense", max_new_tokens=NEW)


def prompt(rows=1):
    return torch.arange(3, 3 + LENGTH).expand(rows, -1)


def refusal(what, *parts):
    with pytest.raises(UserError) as error:
        what()
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value), str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_of_runs_pass(family):
    check_model(hooked(make(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_that_is_not_causal(family, tiny_model_dir, tmp_path, private_cache):
    folder = Path(shutil.copytree(tiny_model_dir(family), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"is_causal": False}))
    loaded = load_model(ModelConfig(path=str(folder), device="cpu"), register_attention())
    refusal(lambda: check_model(loaded.model), family, "layer 0", "bidirectional")
    refusal(lambda: prefill(loaded.model, list(range(30)), 1), family, "layer 0", "bidirectional")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_that_passes_the_cache_by(layer):
    model = make()
    own = model.model.layers[layer].self_attn.forward
    model.model.layers[layer].self_attn.forward = lambda *args, past_key_values=None, **rest: (
        rest["hidden_states"],
        None,
    )
    refusal(lambda: dense(model), "'llama'", f"layer {layer}", "does not attend through the cache")
    assert model.config._attn_implementation == "eager"
    model.model.layers[layer].self_attn.forward = own
    dense(model)


@pytest.mark.parametrize(("layer", "other"), [(1, 0), (2, 1), (0, 2)])
def test_a_layer_with_the_keys_of_another(layer, other):
    model = make()
    model.model.layers[layer].self_attn.layer_idx = other
    refusal(lambda: dense(model), "'llama'", "layer ")


def test_a_layer_that_fails_with_the_cache():
    model = make()
    model.model.layers[1].self_attn.forward = lambda *args, **rest: 1 / 0
    refusal(lambda: dense(model), "'llama'", "interface", "ZeroDivisionError")


def test_keys_and_values_of_two_sizes():
    layer, keys = ProbeLayer(7, "mla"), torch.zeros(1, 2, 3, 24)
    refusal(lambda: layer.update(keys, keys[..., :16]), "'mla'", "layer 7", "[1, 2, 3, 24]", "[1, 2, 3, 16]")


@pytest.mark.parametrize(
    "name", ["s_aux", "sinks", "softcap", "position_bias", "cu_seq_lens_q", "anything_new"]
)
@pytest.mark.parametrize("value", [torch.ones(1), 0.5, "yes"])
def test_keywords_that_are_not_known(name, value):
    model = make()
    cache = dense(model)
    refusal(
        lambda: model(prompt(), past_key_values=cache, **{name: value}), "'llama'", "layer 0", f"'{name}'"
    )
    cache = dense(model)
    model(prompt(), past_key_values=cache, **{name: None})


def test_attention_weights_cannot_be_given():
    model = make()
    cache = dense(model)
    refusal(lambda: model(prompt(), past_key_values=cache, output_attentions=True), "output_attentions")


def test_dropout_while_training():
    model = make(attention_dropout=0.5)
    cache = dense(model)
    refusal(lambda: model.train()(prompt(), past_key_values=cache), "'dropout'")


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril(),
        torch.zeros(1, 1, LENGTH, LENGTH),
        torch.ones(1, LENGTH - 1, dtype=torch.long),
        torch.ones(1, LENGTH + 1, dtype=torch.long),
        torch.zeros(1, LENGTH, dtype=torch.long),
        torch.ones(1, LENGTH, dtype=torch.long).index_fill(1, torch.tensor([5]), 0),
    ],
    ids=["bool 4D", "float 4D", "short", "long", "nothing", "hole"],
)
def test_masks_that_are_no_left_padding(mask):
    model = make()
    cache = dense(model)
    refusal(lambda: model(prompt(), past_key_values=cache, attention_mask=mask), "mask")


def test_a_step_with_another_mask_than_the_prompt():
    model = make()
    for first, later, fine in [(1, 1, True), (0, 0, True), (0, 1, False), (1, 0, False)]:
        cache, mask = dense(model), torch.ones(1, LENGTH, dtype=torch.long)
        mask[:, :2] = first
        with torch.inference_mode():
            model(prompt(), past_key_values=cache, attention_mask=mask)
            step = torch.ones(1, LENGTH + 1, dtype=torch.long)
            step[:, :2] = later
            if fine:
                model(prompt()[:, :1], past_key_values=cache, attention_mask=step)
            else:
                refusal(
                    lambda: model(prompt()[:, :1], past_key_values=cache, attention_mask=step),  # noqa: B023
                    "attention_mask: a step",
                )


def wrong(function, low, high, columns):
    found = _beyond_causal(function, range(low, high), columns, "cpu")
    return None if found is None else getattr(found, attention.FAULT)


@settings(deadline=None)
@given(window=st.integers(1, 40), low=st.integers(0, 40), count=st.integers(1, 40), block=st.integers(1, 200))
def test_masks_by_their_function(window, low, count, block):
    high = low + count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        assert wrong(causal_mask_function, low, high, high) is None
        sliding = wrong(sliding_window_causal_mask_function(window), low, high, high)
        assert (sliding is None) == (high <= window) and "sliding" in (sliding or "sliding")
        chunked = chunked_causal_mask_function(window, torch.zeros(1, dtype=torch.long))
        assert (wrong(chunked, low, high, high) is None) == (high <= window)
        both = wrong(bidirectional_mask_function, low, high, high)
        assert (both is None) == (count == 1) and "bidirectional" in (both or "bidirectional")

        def image(batch, head, query, key):
            return (query >= low) & (key >= low)

        assert (wrong(or_masks(causal_mask_function, image), low, high, high) is None) == (count == 1)


def test_a_window_that_the_config_does_not_name_is_seen_by_the_mask(monkeypatch):
    monkeypatch.setattr("kvbench.engine.prefill.sliding_window", lambda model: None)
    model = hooked(make("mistral", sliding_window=12))
    prefill(model, list(range(12)), 1)
    refusal(lambda: prefill(model, list(range(13)), 1), "'mistral'", "sliding window", "13 tokens")
    refusal(lambda: prefill(model, list(range(30)), 1, chunk=4), "'mistral'", "sliding window")
