"""Known mistakes of other implementations, each as a test."""

import pytest
import torch
from kvbench_testing.golden import LENGTH, snapshot, tensors

import kvbench
from kvbench.config.errors import UserError
from kvbench.methods import Budget, LayerSnapshot, Quota, Shape, build

EVICTIONS = [
    "random",
    "streaming_llm",
    "snapkv",
    "pyramidkv",
    "adakv",
    "chunkkv",
    "knorm",
    "keydiff",
    "tova",
    "h2o",
]


def draw(length, query_heads=4, heads=2, batch=1, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, n, length, dim, generator=generator) for n in (query_heads, heads, heads)]


def lists(kept):
    return [positions.tolist() for positions in kept]


@pytest.mark.parametrize("method", EVICTIONS)
def test_a_fifth_of_ten_tokens_is_two(method):
    # int(10 * (1 - 0.8)) is 1
    (kept,) = kvbench.keep(method, *draw(10), ratio=0.2)
    assert sum(map(len, kept)) == 2 * len(kept)


def test_chunkkv_keeps_a_hundred_of_a_thousand_tokens_where_kvpress_keeps_eighty():
    data = draw(1000)
    (ours,) = kvbench.keep("chunkkv", *data, ratio=0.1, chunk=20)
    (theirs,) = kvbench.keep("chunkkv", *data, ratio=0.1, chunk=20, mode="kvpress", window=64, kernel=5)
    assert [len(p) for p in ours] == [100, 100] and [len(p) for p in theirs] == [80, 80]


def test_chunkkv_never_drops_its_window_and_always_has_context():
    # kvpress keeps two chunks here, both inside its window of 64
    (kept,) = kvbench.keep("chunkkv", *draw(1000), ratio=0.05, chunk=20)
    for positions in kept:
        assert positions[-32:].tolist() == list(range(968, 1000)) and len(positions) == 50


@pytest.mark.parametrize("method", ["snapkv", "adakv", "chunkkv"])
@pytest.mark.parametrize("tokens", [1, 20, 31])
def test_a_budget_within_the_window_keeps_the_last_tokens(method, tokens):
    # kvpress keeps 439..495 of 500 with a window of 64
    (kept,) = kvbench.keep(method, *draw(500), tokens=tokens)
    assert lists(kept) == [list(range(500 - tokens, 500))] * 2


@pytest.mark.parametrize("method", ["snapkv", "pyramidkv", "adakv", "chunkkv"])
@pytest.mark.parametrize("heads", ["kv_head", "query_head"])
def test_a_prompt_shorter_than_the_window_keeps_its_last_tokens(method, heads):
    params = {} if method == "chunkkv" else {"heads": heads}
    (kept,) = kvbench.keep(method, *draw(7), tokens=3, **params)
    assert lists(kept) == [[4, 5, 6]] * (4 if heads == "query_head" and params else 2)


def test_pyramidkv_is_a_pyramid_at_small_budgets_and_notes_a_fallback():
    shape, budget = Shape(4096, 128, 32, 128), Budget(ratio="0.125")
    official = build({"method": "pyramidkv"}).resolve(shape, budget)
    tokens = [rule.keep for rule in official.rules]
    assert tokens[0] > 900 and tokens[-1] < 70 and not official.notes
    like = {"mode": "kvpress", "window": 64, "kernel": 5, "pool": "avg"}
    theirs = build({"method": "pyramidkv", **like}).resolve(shape, budget)
    assert {rule.keep for rule in theirs.rules} == {512}
    assert theirs.notes == ("pyramidkv: the same budget in every layer, as SnapKV",)
    # the official code falls back too, when the prompt has less than twice the budget
    short = build({"method": "pyramidkv"}).resolve(Shape(900, 128, 32, 128), Budget(tokens=512))
    assert {rule.keep for rule in short.rules} == {512} and short.notes
    # no note if nothing is evicted
    assert not build({"method": "pyramidkv"}).resolve(Shape(400, 128, 32, 128), Budget(tokens=512)).notes


@pytest.mark.parametrize("method", ["snapkv", "chunkkv", "tova", "h2o", "knorm", "keydiff"])
def test_bf16_is_scored_in_fp32(method):
    # kvpress scores in bf16, where 1.5 % of the values are distinct
    halves = [x.bfloat16() for x in draw(600, dim=64)]
    kept = kvbench.keep(method, *halves, tokens=100)
    assert lists(kept[0]) == lists(kvbench.keep(method, *(x.float() for x in halves), tokens=100)[0])


def test_bf16_window_scores_are_all_distinct():
    q, k, v = (x[0].bfloat16() for x in draw(600, dim=64))
    scores = LayerSnapshot(k, v, q, 0, 1, 0.125).window_scores(32)
    assert len(scores[0, :-32].unique()) > 500


def test_tensorrts_snapkv_is_scored_in_fp32():
    q, k, v = (x[0].bfloat16() for x in draw(600, dim=64))
    eviction = build({"method": "rocketkv_trtllm", "kernel": 1}).parts()[0]
    halves, exact = (
        eviction.scores(LayerSnapshot(x, v, y, 0, 1, 0.125)) for x, y in ((k, q), (k.float(), q.float()))
    )
    assert torch.equal(halves, exact) and len(halves[0].unique()) > 500
    equal = LayerSnapshot(*(torch.ones(1, 50, 4) for _ in range(3)))
    kept = build({"method": "rocketkv_trtllm", "window": 2}).parts()[0]
    assert lists(kept.keep(equal, kept.scores(equal), Quota(6)).positions) == [[0, 1, 2, 3, 48, 49]]


def test_the_oracle_ranks_bf16_in_fp32():
    q, k, v = (x.bfloat16() for x in draw(600, dim=64))
    read = kvbench.select("topk_oracle", q[:, :, -1], k, v, tokens=100)
    exact = kvbench.select("topk_oracle", *(x.float() for x in (q[:, :, -1], k, v)), tokens=100)
    assert lists(read[0]) == lists(exact[0])


@pytest.mark.parametrize("method", ["snapkv", "knorm", "tova", "keydiff"])
def test_ties_go_to_the_earlier_token(method):
    q, k, v = (torch.ones(1, n, 50, 4) for n in (2, 2, 2))
    (kept,) = kvbench.keep(method, q, k, v, tokens=6, **({"window": 2} if method == "snapkv" else {}))
    assert lists(kept) == [[0, 1, 2, 3, 48, 49] if method == "snapkv" else list(range(6))] * 2


@pytest.mark.parametrize("mode", ["paper", "kvpress"])
def test_rows_of_a_batch_are_ranked_separately(mode):
    data = draw(300, batch=2)
    both = kvbench.keep("chunkkv", *data, tokens=100, mode=mode)
    assert lists(both[0]) != lists(both[1])
    for row in range(2):
        (alone,) = kvbench.keep("chunkkv", *(x[row : row + 1] for x in data), tokens=100, mode=mode)
        assert lists(alone) == lists(both[row])


def test_rocketkv_does_not_halve_a_prompt_that_fits():
    q, k, v = draw(300)
    (kept,) = kvbench.keep("rocketkv", q, k, v, tokens=400, max_new_tokens=100)
    assert lists(kept) == [list(range(300))] * 2
    (read,) = kvbench.select("rocketkv", q[:, :, -1], k, v, tokens=400, max_new_tokens=100)
    assert lists(read) == [list(range(300))] * 2
    (halved,) = kvbench.select("rocketkv", q[:, :, -1], k, v, tokens=399, max_new_tokens=100)
    assert [len(slots) for slots in halved] == [199, 199]


@pytest.mark.parametrize("length", [9, 10, 11])
def test_pages_of_three_with_a_partial_last_page(length):
    k = torch.zeros(1, 1, length, 4)
    k[0, 0, 4, 0], k[0, 0, length - 1, 0] = 9.0, 10.0
    q = torch.tensor([[[1.0, 0, 0, 0]]])
    (read,) = kvbench.select("hsa", q, k, k, tokens=8, page=3, channels=4, prompt_tokens=100)
    # four tokens: all of the last page, the rest from the second
    last = list(range((length - 1) // 3 * 3, length))
    assert read[0].tolist() == [3, 4, 5][: 4 - len(last)] + last


def test_hsa_takes_one_bound_for_a_group_whose_signs_disagree():
    # channel 0: +3 and -2 sum to +1: the maximum counts for both heads, though the other one needs the minimum
    k = torch.zeros(1, 1, 8, 2)
    k[0, 0, 2, 0], k[0, 0, 5, 0] = 5.0, -9.0
    q = torch.tensor([[[3.0, 0.0], [-2.0, 0.0]]])
    (read,) = kvbench.select("hsa", q, k, k, tokens=4, page=2, channels=2, prompt_tokens=100)
    assert read[0].tolist() == [2, 3]


def test_chunk_reuse_is_refused_without_the_leading_layer():
    with pytest.raises(UserError, match="n_reuse"):
        kvbench.keep("chunkkv", *draw(50), tokens=40, n_reuse=2, layer=1, num_layers=2)
    assert kvbench.keep("chunkkv", *draw(50), tokens=40, n_reuse=2, layer=2, num_layers=4)


def test_chunkkv_as_kvpress_keeps_at_least_one_chunk():
    data = tensors()
    (kept,) = kvbench.keep("chunkkv", *data, tokens=5, mode="kvpress", chunk=20)
    assert {len(p) for p in kept} == {20}
    (short,) = kvbench.keep(
        "chunkkv", *(x[:, :, :15] for x in data), tokens=5, mode="kvpress", chunk=20, window=4
    )
    assert {len(p) for p in short} == {5}


def test_chunkkv_offset_moves_the_grid():
    (kept,) = kvbench.keep("chunkkv", *tensors(), tokens=52, offset=4)
    early = kept[0][kept[0] < LENGTH - 32]
    for begin in {int((p - 4) // 10 * 10 + 4) for p in early}:
        assert set(range(max(0, begin), begin + 10)) <= set(early.tolist())
    with pytest.raises(UserError, match="offset"):
        kvbench.keep("chunkkv", *tensors(), tokens=52, offset=10)


@pytest.mark.parametrize(
    ("chunks", "longest", "starts"),
    [("sentence", 7, [0, 3, 10]), ("sentence", 4, [0, 3, 7, 10, 14]), ("punctuation", 7, [0, 3, 5, 10])],
)
def test_chunks_begin_at_boundaries_and_never_exceed_their_length(chunks, longest, starts):
    # sentences end after tokens 2 and 9, a clause after token 4; the window begins at 16
    layer = snapshot(window=4)
    layer.k_HTD = layer.k_HTD[:, :20]
    layer.boundaries_T = torch.zeros(20, dtype=torch.int8)
    layer.boundaries_T[[2, 9]], layer.boundaries_T[4] = 2, 1
    method = build({"method": "chunkkv", "chunks": chunks, "chunk": longest, "window": 4}).eviction
    of_T = method.scores(layer).of_T
    assert [0, *((of_T[1:] != of_T[:-1]).nonzero()[:, 0] + 1).tolist()] == starts
