"""The engine with every form of the kernels: naive, portable, compiled, and Triton in the interpreter."""

import threading

import pytest
import torch
from kvbench_testing.interpreter import corrected
from kvbench_testing.triton import INTERPRETED, needs_triton
from transformers import AutoModelForCausalLM

from kvbench.engine import blocks
from kvbench.engine.attention import register_attention
from kvbench.engine.blocks import cell_bytes
from kvbench.engine.decode import DecodeOptions, decode_cells
from kvbench.engine.prefill import prefill
from kvbench.kernels import forms, hsa_scores, sparse_decode
from kvbench.kernels.operations import forms_for, has_form, label, operations
from kvbench.kernels.sparse_decode import cpu
from kvbench.methods import Budget, Shape, build

NEW, LAYERS, DIM = 4, 2, 16
PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(150)]
SMALL = [
    ({"method": "snapkv", "window": 8}, 40),
    ({"method": "chunkkv", "window": 8}, 40),
    ({"method": "quest", "page": 4, "dense_layers": 0}, 24),
    ({"method": "hsa"}, 40),
    ({"method": "rocketkv", "window": 8}, 48),
    ({"method": "snapkv", "window": 8, "format": "fp8_e4m3"}, 40),
]
MORE = [
    ({"method": "snapkv", "window": 8, "heads": "query_head"}, 40),
    ({"method": "rocketkv", "window": 8, "pin_recent": 3}, 48),
    ({"method": "quest", "page": 4, "dense_layers": 0, "heads": "query_head"}, 24),
    ({"method": "sparq", "channels": 6}, 32),
    ({"method": "topk_oracle", "heads": "query_head"}, 16),
    ({"method": "h2o"}, 40),
    ({"method": "snapkv", "window": 8, "format": "int4", "selection": {"name": "hsa"}}, 100),
    ({"method": "snapkv", "window": 8, "heads": "query_head", "selection": "hsa", "keep": 90}, 40),
    ({"method": "adakv", "window": 8, "heads": "query_head", "selection": "sparq", "keep": 90}, 40),
]


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    folder = tiny_model_dir("llama", group=3, layers=LAYERS)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention()).eval()


def decoded(model, entries, kl=True):
    """Tokens and numbers of dense and of some cells, from a separate prefill."""
    shape = Shape(len(PROMPT) - 1, NEW, LAYERS, DIM)
    cells = [build(entry).resolve(shape, Budget(tokens=tokens)) for entry, tokens in entries]
    snapshot = prefill(model, PROMPT[:-1], 16, chunk=64, needs=frozenset({"attention_sum"}))
    options = DecodeOptions(NEW, batch_rows=2 * len(entries) + 1 if kl else len(entries) + 1, kl=kl)
    group = decode_cells(model, snapshot, [], PROMPT[-1], cells, options)
    return [group.dense, *group.cells]


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.ids == b.ids and (a.read, a.resident, a.kept) == (b.read, b.resident, b.kept)
        assert a.kl == pytest.approx(b.kl, abs=1e-4)


@pytest.fixture(scope="module")
def naive(model):
    with forms.using("naive"):
        results = decoded(model, SMALL + MORE)
    assert len({tuple(cell.ids) for cell in results}) > 7, (
        "the methods must differ, or the test shows nothing"
    )
    return results


@pytest.mark.parametrize(
    "form",
    [
        "portable",
        pytest.param("compiled", marks=pytest.mark.skipif(not cpu.available(), reason="no compiler")),
    ],
)
def test_the_engine_gives_the_same_tokens_in_every_form(model, naive, form):
    with forms.using(form):
        same(decoded(model, SMALL + MORE), naive)


@needs_triton
@pytest.mark.skipif(not INTERPRETED, reason="the tests marked gpu run it on a GPU")
def test_the_engine_gives_the_same_tokens_with_triton(model):
    with forms.using("naive"):
        expected = decoded(model, SMALL, kl=False)
    with corrected(), forms.using("triton"):
        same(decoded(model, SMALL, kl=False), expected)


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(not INTERPRETED, reason="the tests marked gpu run it on a GPU")
def test_every_method_gives_the_same_tokens_with_triton(model, naive):
    with corrected(), forms.using("triton"):
        same(decoded(model, SMALL + MORE), naive)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_tokens(model, naive):
    on_gpu = AutoModelForCausalLM.from_pretrained(
        model.name_or_path, attn_implementation=register_attention()
    )
    same(decoded(on_gpu.eval().cuda(), SMALL + MORE), naive)


def test_a_form_is_forced_only_inside():
    where, dtype = torch.device("cpu"), torch.float32
    usual = hsa_scores.form(where, dtype)
    with forms.using("naive"):
        assert hsa_scores.form(where, dtype) == "naive"
        with forms.using("triton"):
            assert hsa_scores.form(where, dtype) == "triton"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(hsa_scores.form(where, dtype)))
        thread.start()
        thread.join()
        assert seen == [usual] and hsa_scores.form(where, dtype) == "naive"
    assert hsa_scores.form(where, dtype) == usual


@pytest.mark.parametrize("form", forms.MODULES)
def test_tensors_without_data_are_sized_whatever_form_is_forced(model, form, monkeypatch):
    """A compiled form would read from address 0."""
    # which cells refer to the prompt depends on the form
    monkeypatch.setattr(blocks, "refers", lambda *_: False)
    shape = Shape(len(PROMPT) - 1, NEW, LAYERS, DIM)
    snapshot = prefill(model, PROMPT[:-1], 16, needs=frozenset({"attention_sum"}))
    cells = [build(entry).resolve(shape, Budget(tokens=tokens)) for entry, tokens in SMALL + MORE]
    expected = [cell_bytes(snapshot, cell, NEW) for cell in cells]
    with forms.using(form):
        assert [cell_bytes(snapshot, cell, NEW) for cell in cells] == expected
        assert forms.choose(torch.device("meta"), torch.float32, lambda: True) == "portable"


def test_unsupported_arguments_run_the_portable_form():
    where = torch.device("cpu")
    with forms.using("compiled"):
        packages = [package for package in operations().values() if hasattr(package, "form")]
        without = [package for package in packages if not has_form(package, "compiled")]
        assert {package.form(where, torch.float32) for package in without} == {"portable"}
        assert hsa_scores.form(where, torch.float64) == "portable"
        assert sparse_decode.form(where, torch.float32, 4, 48) == "portable"


@pytest.mark.skipif(not cpu.available(), reason="no compiler")
def test_records_name_the_forms():
    where = torch.device("cpu")
    assert label(forms_for(where, torch.bfloat16, 4, 128)) == "compiled"
    odd = label(forms_for(where, torch.bfloat16, 4, 48))
    # the whole text is compared in test_runs/test_plan.py, as it was when some runs were made
    assert odd.startswith(
        "portable, window_scores compiled, pool compiled, hsa_scores compiled, top_k compiled"
    )
    with forms.using("portable"):
        assert label(forms_for(where, torch.bfloat16, 4, 128)) == "portable"
