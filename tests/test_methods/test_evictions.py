"""Which tokens evictions keep: hand-computed cases and invariants."""

import pytest
import torch
from kvbench_testing.golden import snapshot

from kvbench.engine.compress import AuditError, audit
from kvbench.kernels.pool import pool
from kvbench.kernels.top_k import top_k, top_k_mask
from kvbench.kernels.window_scores import naive, window_scores
from kvbench.methods import Budget, LayerSnapshot, Quota, Shape, build
from kvbench.methods.adakv import AdaKV
from kvbench.methods.chunkkv import ChunkKV
from kvbench.methods.keydiff import KeyDiff
from kvbench.methods.knorm import KNorm
from kvbench.methods.random_eviction import Random
from kvbench.methods.snapkv import SnapKV
from kvbench.methods.streaming_llm import StreamingLLM


def peaked(length, peaks, heads=1, group=1, window=2, layer=0):
    """A layer whose window attends to `peaks` (position -> strength) and evenly to everything else."""
    k = torch.zeros(heads, length, 4)
    for position, strength in peaks.items():
        k[:, position, 0] = strength
    q = torch.zeros(heads * group, window, 4)
    q[:, :, 0] = 1.0
    return LayerSnapshot(k, torch.zeros_like(k), q, layer, 4, 1.0)


def keep(method, layer, tokens, earlier=(), ratio=None):
    kept = method.keep(layer, method.scores(layer), Quota(tokens, ratio, earlier))
    return [p.tolist() for p in kept.positions]


def test_window_scores_equal_the_fp64_reference():
    layer = snapshot(window=17)
    exact = naive.window_scores(layer.q_QWD, layer.k_HTD, layer.scaling)
    ours = window_scores(layer.q_QWD, layer.k_HTD, layer.scaling)
    assert torch.allclose(ours.double(), exact, atol=1e-6)
    assert torch.allclose(ours.sum(-1), torch.tensor(17.0), atol=1e-4)


def test_window_attention_is_causal_inside_the_window():
    layer = peaked(8, {7: 50.0}, window=2)
    # only the last query sees the last token: the query before it spreads over tokens 0..6
    assert layer.window_scores(2)[0, 7] == pytest.approx(1.0)
    assert layer.window_scores(2)[0, 0] == pytest.approx(1 / 7)


def test_top_k_breaks_ties_towards_the_start():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert top_k(scores, 2).tolist() == [[1, 2], [0, 1]]
    assert top_k_mask(scores, 9).all()
    assert not top_k_mask(scores, 0).any()


def test_streaming_llm_keeps_sinks_and_the_most_recent():
    assert keep(StreamingLLM(), peaked(20, {}), 7) == [[0, 1, 2, 3, 17, 18, 19]]
    assert keep(StreamingLLM(), peaked(20, {}), 3) == [[0, 1, 2]]


def test_snapkv_keeps_the_peaks_and_the_window():
    layer = peaked(12, {3: 5.0, 8: 6.0}, window=2)
    assert keep(SnapKV(window=2, kernel=1), layer, 4) == [[3, 8, 10, 11]]


def test_snapkv_max_pool_keeps_the_neighbours_of_a_peak():
    layer = peaked(12, {5: 6.0}, window=2)
    assert keep(SnapKV(window=2, kernel=3), layer, 5) == [[4, 5, 6, 10, 11]]


@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_snapkv_budget_within_the_window_keeps_the_last_tokens(tokens):
    layer = peaked(12, {3: 9.0}, window=4)
    assert keep(SnapKV(window=4, kernel=1), layer, tokens) == [list(range(12 - tokens, 12))]


def test_snapkv_prompt_shorter_than_the_window():
    layer = peaked(5, {1: 3.0}, window=5)
    assert keep(SnapKV(window=32, kernel=7), layer, 3) == [[2, 3, 4]]


def test_snapkv_per_query_head_stores_the_union_with_members():
    k = torch.zeros(1, 10, 2)
    k[0, 2, 0], k[0, 6, 1] = 9.0, 9.0
    q = torch.zeros(2, 1, 2)
    q[0, 0, 0] = q[1, 0, 1] = 1.0
    layer = LayerSnapshot(k, k, q, 0, 1, 1.0)
    method = SnapKV(heads="query_head", window=1, kernel=1)
    kept = method.keep(layer, method.scores(layer), Quota(2))
    assert kept.positions[0].tolist() == [2, 6, 9]
    assert kept.members is not None
    assert kept.members[0].tolist() == [[True, False, True], [False, True, True]]


def test_snapkv_group_order_and_scale_do_not_matter():
    layer, method = snapshot(window=32), SnapKV()
    expected = keep(method, layer, 100)
    swapped = layer.q_QWD.view(2, 4, 32, 16).flip(1).reshape(8, 32, 16)
    assert (
        keep(method, LayerSnapshot(layer.k_HTD, layer.v_HTD, swapped, 0, 1, layer.scaling), 100) == expected
    )
    scaled = LayerSnapshot(layer.k_HTD * 4, layer.v_HTD, layer.q_QWD / 4, 0, 1, layer.scaling)
    assert keep(method, scaled, 100) == expected


def test_pool_is_the_official_pooling():
    scores = torch.tensor([[0.0, 3.0, 0.0, 0.0, 6.0]])
    assert pool(scores, 3, "max").tolist() == [[3.0, 3.0, 3.0, 6.0, 6.0]]
    assert pool(scores, 3, "avg").tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0]]


def test_chunkkv_keeps_whole_chunks_then_cuts_the_last_to_meet_the_budget():
    # chunks of 4 before the window at 18: [0..3] [4..7] [8..11] [12..15] [16,17]
    layer = peaked(20, {5: 6.0, 13: 5.0, 9: 4.0}, window=2)
    method = ChunkKV(window=2, chunk=4)
    assert keep(method, layer, 10) == [[4, 5, 6, 7, 12, 13, 14, 15, 18, 19]]
    assert keep(method, layer, 13) == [[4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 15, 18, 19]]


def test_chunkkv_sums_over_the_chunk_and_all_heads():
    # one strong token against two that are stronger together
    layer = peaked(14, {1: 5.0, 5: 4.7, 6: 4.7}, window=2)
    assert keep(ChunkKV(window=2, chunk=4), layer, 6) == [[4, 5, 6, 7, 12, 13]]


def test_chunkkv_per_kv_head_chooses_for_each_head():
    k = torch.zeros(2, 10, 2)
    k[0, 1, 0] = k[1, 5, 0] = 6.0
    q = torch.zeros(2, 2, 2)
    q[:, :, 0] = 1.0
    layer = LayerSnapshot(k, k, q, 0, 1, 1.0)
    assert keep(ChunkKV(window=2, chunk=4, heads="kv_head"), layer, 6) == [
        [0, 1, 2, 3, 8, 9],
        [4, 5, 6, 7, 8, 9],
    ]


def test_chunkkv_followers_take_the_leaders_indices():
    method = ChunkKV(window=2, chunk=4, n_reuse=2)
    first = method.keep(peaked(14, {1: 5.0}), method.scores(peaked(14, {1: 5.0})), Quota(6))
    follower = peaked(14, {5: 5.0}, layer=1)
    assert keep(method, follower, 6, [first]) == [[0, 1, 2, 3, 12, 13]]
    leader = peaked(14, {5: 5.0}, layer=2)
    assert keep(method, leader, 6, [first, first]) == [[4, 5, 6, 7, 12, 13]]


@pytest.mark.parametrize("tokens", [33, 42, 63, 100, 330])
def test_chunkkv_meets_the_budget_exactly_and_keeps_the_window(tokens):
    layer = snapshot(window=32)
    for heads in ("layer", "kv_head"):
        for row in keep(ChunkKV(heads=heads), layer, tokens):
            assert len(row) == tokens
            assert row[-32:] == list(range(299, 331))


def test_chunkkv_as_kvpress_rounds_in_binary_floating_point():
    layer = peaked(100, {50: 5.0}, window=8)
    method = ChunkKV(mode="kvpress", window=8, chunk=10, kernel=1)
    assert len(keep(method, layer, 20, ratio="0.2")[0]) == 10  # int(10 * (1 - 0.8)) is 1
    assert len(keep(method, layer, 20)[0]) == 20


def test_chunkkv_as_kvpress_counts_a_cut_chunk_as_a_whole_one():
    layer = snapshot(window=331)
    layer.k_HTD, layer.v_HTD, layer.q_QWD = (x[:, :101] for x in (layer.k_HTD, layer.v_HTD, layer.q_QWD))
    method = ChunkKV(mode="kvpress", window=20, chunk=20, kernel=5)
    # the last chunk has one token; two of six chunks are a third, and the window's two come first
    (first, *_) = keep(method, layer, 34)
    assert first == [*range(80, 101)]
    layer.k_HTD = torch.cat([layer.k_HTD[:, :40] * 0.01, layer.k_HTD[:, 40:]], 1)
    method = ChunkKV(mode="kvpress", scorer="knorm", window=20, chunk=20, kernel=5)
    (first, *_) = keep(method, layer, 34)
    assert first == [*range(40)] and len(first) > 34
    kept = method.keep(layer, method.scores(layer), Quota(34))
    audit(kept, layer, 34, method)
    with pytest.raises(AuditError, match="more than 34"):
        audit(kept, layer, 34, ChunkKV())


def test_chunkkv_as_kvpress_takes_uneven_chunks_while_they_fit():
    layer = snapshot(window=331)
    layer.boundaries_T = torch.zeros(331, dtype=torch.int8)
    layer.boundaries_T[::9] = 2
    method = ChunkKV(mode="kvpress", scorer="knorm", chunks="sentence", chunk=20)
    of_T, scores = method.scores(layer).of_T, method.scores(layer).scores_HC[0]
    for tokens in (20, 21, 100, 250, 330):
        room, expected = tokens, []
        for chunk in scores.sort(descending=True, stable=True).indices.tolist():
            members = (of_T == chunk).nonzero()[:, 0].tolist()
            if len(members) > room:
                break
            room, expected = room - len(members), [*expected, *members]
        for ratio in (None, "0.5"):
            assert keep(method, layer, tokens, ratio=ratio)[0] == sorted(expected)


def test_random_is_seeded_and_differs_by_head_and_layer():
    layer = snapshot()
    first, again = keep(Random(seed=7), layer, 50), keep(Random(seed=7), layer, 50)
    assert first == again
    assert first[0] != first[1]
    assert first != keep(Random(seed=7), snapshot(layer=1), 50)
    assert first != keep(Random(seed=8), layer, 50)


@pytest.mark.parametrize("chunk", [2, 4, 8, 128])
def test_chunkkv_of_half_a_prompt_that_the_grid_divides(chunk):
    layer = snapshot(window=331)
    layer.k_HTD, layer.v_HTD, layer.q_QWD = (x[:, :256] for x in (layer.k_HTD, layer.v_HTD, layer.q_QWD))
    for scorer in ("snapkv", "knorm", "keydiff"):
        method = ChunkKV(mode="kvpress", scorer=scorer, window=64, kernel=5, chunk=chunk)
        (first, second) = keep(method, layer, 128, ratio="0.5")
        assert len(first) == 128 and first == second
        assert all({*range(p - p % chunk, p - p % chunk + chunk)} <= {*first} for p in first)


def test_chunkkv_of_single_tokens_and_one_head_is_its_scorer():
    layer = snapshot(window=331)
    layer.k_HTD, layer.v_HTD, layer.q_QWD = layer.k_HTD[:1], layer.v_HTD[:1], layer.q_QWD[:4]
    assert keep(ChunkKV(mode="kvpress", scorer="knorm", chunk=1), layer, 100) == keep(KNorm(), layer, 100)
    assert keep(ChunkKV(chunk=1), layer, 100) == keep(SnapKV(kernel=1), layer, 100)


def test_snapkv_keeps_the_highest_scores():
    layer, method = snapshot(window=64), SnapKV(window=64)
    scores = method.scores(layer)
    for row, kept in zip(scores, keep(method, layer, 120), strict=True):
        early = torch.tensor(kept[:-64])
        out = torch.ones(len(row), dtype=torch.bool).index_fill(0, early, False)
        assert float(row[early].min()) >= float(row[out].max())


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_adakv_as_kvpress_meets_the_budget_of_the_layer_and_protects_every_head(ratio):
    tokens = int(331 * ratio)
    method = AdaKV(mode="kvpress", window=16, kernel=5, pool="avg")
    kept = keep(method, snapshot(window=64), tokens)
    assert sum(map(len, kept)) == 2 * tokens
    assert min(map(len, kept)) >= max(1, int(0.2 * tokens))


def test_keys_of_small_norm_and_unlike_keys_are_kept():
    k = torch.ones(1, 6, 4) + torch.arange(6)[None, :, None] * 0.1
    k[0, 4] = torch.tensor([-1.0, 2.0, -1.0, 1.0])
    layer = LayerSnapshot(k, k, k)
    assert keep(KNorm(), layer, 2) == [[0, 1]]
    assert keep(KeyDiff(), layer, 1) == [[4]]


def test_key_norm_can_leave_the_first_layers_dense():
    rules = (
        build({"method": "knorm", "dense_layers": 2}).resolve(Shape(100, 10, 4, 64), Budget(tokens=20)).rules
    )
    assert [rule.keep for rule in rules] == [None, None, 20, 20]
