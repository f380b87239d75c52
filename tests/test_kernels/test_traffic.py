"""Bytes that the kernels load and store, counted in the interpreter, against the cost model."""

import pytest
import torch
from kvbench_testing.interpreter import watched
from kvbench_testing.triton import INTERPRETED, needs_triton

from kvbench.kernels.forms import using
from kvbench.kernels.hsa_decode import hsa_decode
from kvbench.kernels.hsa_scores import channel_logits
from kvbench.kernels.page_bounds import page_bounds
from kvbench.methods.rocket_budget import capacity, split_traffic

pytestmark = [needs_triton, pytest.mark.skipif(not INTERPRETED, reason="needs the interpreter")]

# Llama-3.1-8B: 8 KV heads of 4 query heads with 128 channels, 32 layers, bf16
HEADS, GROUP, DIM, LAYERS, ELEMENT = 8, 4, 128, 32, 2


def rocketkv_step(heads, length, page, channels, tokens):
    """Traffic of one RocketKV step in one layer."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).bfloat16()

    q, k, v = draw(1, heads, GROUP, DIM), draw(1, heads, length, DIM), draw(1, heads, length, DIM)
    k_tail, v_tail = draw(1, heads, 4, DIM), draw(1, heads, 4, DIM)
    low, high = page_bounds(k, page, -(-length // page))
    bounds = torch.cat([low, high], -1).transpose(-1, -2).contiguous()
    with (
        using("triton"),
        watched(q=q, bounds=bounds, k=k, v=v, k_tail=k_tail, v_tail=v_tail) as traffic,
    ):
        hsa_decode(q, k, v, k_tail, v_tail, torch.tensor(0), bounds, channels, page, tokens, DIM**-0.5)
    return traffic


def total(traffic):
    return sum(traffic.loaded.values()) + sum(traffic.stored.values())


def choice_scratch(heads, pages, channels, tokens, programs=128):
    """Bytes of all but the bounds: queries, channels, logits, their sums, probabilities (read five times), indices."""
    blocks = -(-pages // programs)
    queries = GROUP * DIM * ELEMENT
    chosen = 4 * channels * (1 + GROUP) * (1 + blocks)
    logits = 2 * 4 * GROUP * pages
    sums = 2 * 4 * GROUP * blocks
    lengths = 8 * (blocks + 1)
    return heads * (queries + chosen + logits + sums + lengths + 4 * pages * (1 + 5) + 4 * tokens)


def attention_scratch(heads, tokens, piece=128):
    """Bytes of everything but K and V: queries, indices, partial results, output and log-sum-exp."""
    pieces = -(-tokens // piece)
    queries = pieces * (GROUP * DIM * ELEMENT + 8)
    result = GROUP * (DIM * ELEMENT + 4)
    partial = 2 * 4 * GROUP * pieces * (DIM + 1) if pieces > 1 else 0
    return heads * (queries + 4 * tokens + partial + result)


def test_a_whole_layer_of_llama_at_96k(capsys):
    length, traffic = 98304, 256
    room = capacity(length, traffic, None)
    page, channels = split_traffic(room, traffic, DIM)
    pages, tokens = -(-room // page), traffic // 2
    traffic_of = rocketkv_step(HEADS, room, page, channels, tokens)
    # rocketkv.md section 3: per KV head and layer, in elements
    model_scoring = HEADS * pages * channels * ELEMENT
    model_attention = HEADS * 2 * tokens * DIM * ELEMENT
    published = 33.9e6 / LAYERS
    with capsys.disabled():
        print(
            f"\nhsa_decode, Llama-3.1-8B heads, 96K, t = {traffic}, one layer: {total(traffic_of) / 1e6:.3f} MB,"
            f" {total(traffic_of) / published:.3f} times the published {published / 1e6:.3f} MB"
        )
    loaded = traffic_of.loaded
    assert loaded["bounds"] <= 1.02 * model_scoring
    assert loaded["k"] + loaded["v"] <= 1.02 * model_attention
    assert loaded["k_tail"] == loaded["v_tail"] == 0
    scratch = choice_scratch(HEADS, pages, channels, tokens) + attention_scratch(HEADS, tokens)
    rest = total(traffic_of) - loaded["bounds"] - loaded["k"] - loaded["v"]
    assert abs(rest - scratch) <= 0.05 * scratch
    assert total(traffic_of) <= 1.3 * published


@pytest.mark.parametrize(
    ("length", "page", "channels", "tokens", "launches"), [(331, 3, 20, 100, 4), (200, 16, 64, 150, 5)]
)
def test_other_shapes(length, page, channels, tokens, launches):
    traffic = rocketkv_step(2, length, page, channels, tokens)
    pages = -(-length // page)
    loaded = traffic.loaded
    assert loaded["bounds"] == 2 * pages * channels * ELEMENT
    assert loaded["k"] == loaded["v"] == 2 * tokens * DIM * ELEMENT
    scratch = choice_scratch(2, pages, channels, tokens) + attention_scratch(2, tokens)
    rest = total(traffic) - loaded["bounds"] - loaded["k"] - loaded["v"]
    assert abs(rest - scratch) <= 0.05 * scratch
    assert traffic.launches == launches


def test_sparq_reads_only_the_chosen_channels():
    q, keys = torch.randn(2, 2, 4, 64), torch.randn(2, 2, 64, 200)
    with using("triton"), watched(q=q, keys=keys) as traffic:
        channel_logits(q, keys, 16, torch.tensor(150))
    assert traffic.loaded["keys"] == 2 * 2 * 16 * 150 * 4


def test_dense_reads_every_slot_once():
    from kvbench.kernels.sparse_decode.triton_form import sparse_decode

    q, k, tail = (torch.randn(2, 2, n, 64) for n in (3, 300, 10))
    v, v_tail = k.clone(), tail.clone()
    with watched(q=q, k=k, v=v, tail=tail, v_tail=v_tail) as traffic:
        sparse_decode(q, k, v, tail, v_tail, torch.tensor([7]), 0.1)
    for name, slots in (("k", 300), ("v", 300), ("tail", 7), ("v_tail", 7)):
        assert traffic.loaded[name] == 2 * 2 * slots * 64 * 4


def test_page_bounds_read_each_key_once():
    from kvbench.kernels.page_bounds.triton_form import page_bounds as build

    k = torch.randn(1, 2, 100, 80)
    with watched(k=k) as traffic:
        build(k, 3, 40)
    assert traffic.loaded["k"] == k.numel() * 4
    assert sum(traffic.stored.values()) == 2 * 2 * 40 * 80 * 4


def test_window_scores_read_keys_twice_and_write_no_matrix():
    from kvbench.kernels.window_scores.triton_form import window_scores

    q, k = torch.randn(4, 16, 64).bfloat16(), torch.randn(2, 500, 64).bfloat16()
    with watched(q=q, k=k) as traffic:
        window_scores(q, k, 0.1)
    assert traffic.loaded["k"] <= 2 * k.numel() * 2
    # log-sum-exp of every query, and the result
    assert sum(traffic.stored.values()) == 4 * (4 * 16 + 4 * 500)


def test_quest_reads_each_bound_once():
    from kvbench.kernels.quest_scores.triton_form import quest_scores

    q, low, high = torch.randn(1, 2, 4, 64), torch.randn(1, 2, 70, 64), torch.randn(1, 2, 70, 64)
    with watched(q=q, low=low, high=high) as traffic:
        quest_scores(q, low, high)
    assert traffic.loaded["low"] == traffic.loaded["high"] == low.numel() * 4
