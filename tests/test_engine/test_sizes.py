"""Sizes of passes that give the same numbers."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from kvbench.engine import sizes
from kvbench.engine.attention import register_attention


@pytest.fixture(scope="module")
def folder(tiny_model_dir):
    return tiny_model_dir("llama", group=3, layers=2)


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


class Depends(torch.nn.Linear):
    """A linear layer whose last digits are others if it has fewer rows than `least`."""

    least = 40

    def forward(self, x):
        out = super().forward(x)
        return out if len(x) >= self.least else torch.nextafter(out, out + 1)


def test_every_size_gives_the_rows_of_the_largest(model):
    found = sizes.pass_sizes(model, 128)
    assert found[-1] == 128 and found == sorted(found) and not any(size % sizes.STEP for size in found)
    # a token attends to itself alone
    model.set_attn_implementation("eager")
    ids = torch.arange(128)[:, None]
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
        for size in found:
            assert torch.equal(model(input_ids=ids[:size], use_cache=False).logits, expected[:size]), size


@pytest.mark.parametrize("place", ["lm_head", "model.layers.0.self_attn.q_proj"])
def test_a_layer_whose_numbers_depend_on_the_rows_is_seen(model, place):
    before = sizes.pass_sizes(model, 128)
    # the first of its kind, which stands for all
    model.get_submodule(place).__class__ = Depends
    sizes._found.clear()
    assert sizes.pass_sizes(model, 128) == [size for size in before if size >= Depends.least]


def test_the_model_is_tried_once_for_each_number_of_threads(model, monkeypatch):
    calls = []
    monkeypatch.setattr(sizes, "_equal_sizes", lambda _, largest: calls.append(1) or [largest])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 1, 2):
            torch.set_num_threads(count)
            assert sizes.pass_sizes(model, 128) == [128]
    finally:
        torch.set_num_threads(threads)
    assert len(calls) == 2


def test_other_devices_have_one_size(model, monkeypatch):
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert sizes.pass_sizes(model, 128) == [128]
