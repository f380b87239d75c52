"""Efficiency runs: isolated rows, and steps that fit in a CUDA graph."""

import pytest
import torch
from kvbench_testing.recording import Graph

from kvbench.engine.attention import register_attention
from kvbench.engine.compress import build_batch
from kvbench.engine.prefill import prefill
from kvbench.engine.step import Step
from kvbench.kernels.forms import using
from kvbench.methods import Budget, Shape, build
from kvbench.models.load import ModelConfig, load_model

PROMPT = [(7 * i * i + 3 * i) % 250 for i in range(200)]
ENTRIES = [
    {"method": "dense"},
    {"method": "snapkv", "window": 8},
    {"method": "snapkv", "window": 8, "heads": "query_head"},
    {"method": "quest", "page": 4, "dense_layers": 1},
    {"method": "topk_oracle", "heads": "query_head"},
    {"method": "hsa"},
    {"method": "rocketkv", "window": 8},
    {"method": "rocketkv", "window": 8, "pin_recent": 4},
    {"method": "snapkv", "window": 8, "format": "fp8_e4m3"},
    {"method": "rocketkv", "window": 8, "format": "fp16"},
    {"method": "sparq"},
    {"method": "h2o"},
    {"method": "tova", "format": "fp8_e5m2"},
    {"method": "streaming_llm", "positions": "reindexed"},
    {"method": "snapkv", "window": 8, "heads": "query_head", "selection": "hsa", "keep": 90},
    {"method": "adakv", "window": 8, "heads": "query_head", "selection": "sparq", "keep": 90},
]


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    cfg = ModelConfig(path=str(tiny_model_dir("llama", group=3, layers=3)), name="tiny")
    return load_model(cfg, register_attention()).model


@pytest.fixture
def portable():
    """The torch forms, whose steps can be recorded."""
    with using("portable"):
        yield


def make_step(model, entry, rows=2):
    snapshot = prefill(model, PROMPT[:-1], 64, needs=frozenset({"attention_sum", "rope"}))
    cell = build(entry).resolve(Shape(len(PROMPT) - 1, 16, 3, 16), Budget(tokens=48))
    cache = build_batch(snapshot, cell, rows, 16)
    return Step(model, cache, PROMPT[-1], rows)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: "-".join(map(str, e.values())))
@torch.inference_mode()
def test_a_recorded_step_replays_like_running_it(model, portable, entry):
    eager, recorded = make_step(model, entry), make_step(model, entry)
    for step in (eager, recorded):
        step.eager()
    with Graph() as graph:
        recorded.eager()
    eager.eager()
    assert torch.equal(recorded.tokens, eager.tokens)
    for _ in range(8):
        eager.eager()
        graph.replay()
        assert torch.equal(recorded.tokens, eager.tokens)
        assert torch.equal(recorded.position, eager.position)
    assert recorded.cache.recordable
    for ours, theirs in zip(recorded.cache.batch_layers, eager.cache.batch_layers, strict=True):
        assert torch.allclose(ours.k_tail, theirs.k_tail, atol=1e-6)


def test_a_step_on_changing_memory_is_not_recordable(model):
    assert not make_step(model, {"method": "snapkv", "window": 8, "format": "int4"}).cache.recordable


@torch.inference_mode()
def test_rows_of_a_batch_share_no_cache(model):
    step = make_step(model, ENTRIES[1], rows=3)
    for layer in step.cache.batch_layers:
        (lane,) = layer.lanes
        assert lane.k_BHKD.shape[0] == 3 and lane.k_BHKD.stride(0) > 0
        assert lane.resident_bytes() == (2 * 2 * 48 * 16 * 4, 0)


@pytest.mark.parametrize("format", [None, "bf16"])
@torch.inference_mode()
def test_counting_what_is_read_can_stop(model, format):
    step = make_step(
        model, {"method": "quest", "page": 4, "dense_layers": 1} | ({"format": format} if format else {})
    )
    step.eager()
    before = step.cache.bytes_read(0, 1)
    tokens = step.tokens.tolist()
    assert before[0] > 0
    step.cache.stop_counting()
    step.eager()
    lanes = [lane for layer in step.cache.batch_layers for lane in layer.stored]
    selected = [layer.slots_selected.tolist() for layer in step.cache.batch_layers]
    step.eager()
    assert [layer.slots_selected.tolist() for layer in step.cache.batch_layers] == selected
    if format:
        assert step.cache.bytes_read(0, 1) == before and lanes
    assert step.tokens.tolist() != tokens
