"""The baselines of RocketKV's paper (appendix A.3) against slow references, and what they read at its sizes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvbench import cost
from kvbench.kernels.page_bounds import page_bounds
from kvbench.methods import Budget, LayerSnapshot, Quota, Shape, build
from kvbench.methods.quest_rocketkv import QuestRocketKV
from kvbench.methods.snapkv import SnapKV
from kvbench.methods.snapkv_rocketkv import SnapKVRocketKV

PROMPT, NEW = 108_872, 128


def layer(group, tokens=80, heads=2, dim=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    k = torch.randn(heads, tokens, dim, generator=draw)
    return LayerSnapshot(k, k, torch.randn(heads * group, 32, dim, generator=draw), 0, 1, dim**-0.5)


@given(st.integers(1, 6), st.integers(1, 79), st.integers(0, 9))
def test_a_group_shares_the_budget_of_its_kv_head(group, tokens, seed):
    snapshot, method = layer(group, seed=seed), SnapKVRocketKV(window=16)
    kept = method.keep(snapshot, method.scores(snapshot), Quota(tokens))
    alone = SnapKV(window=16, heads="query_head")
    expected = alone.keep(snapshot, alone.scores(snapshot), Quota(max(1, tokens // group)))
    assert all(map(torch.equal, kept.positions, expected.positions))
    assert max(map(len, kept.positions)) <= max(tokens, 1)


def test_one_query_head_per_kv_head_is_snapkv():
    snapshot, method = layer(1), SnapKVRocketKV()
    kept = method.keep(snapshot, method.scores(snapshot), Quota(50))
    expected = SnapKV().keep(snapshot, SnapKV().scores(snapshot), Quota(50))
    assert all(map(torch.equal, kept.positions, expected.positions))


def test_snapkvs_defaults_are_those_of_the_appendix():
    method = build({"method": "snapkv_rocketkv"}).describe()
    assert {"window": 32, "kernel": 7, "pool": "max", "heads": "query_head"}.items() <= method[
        "params"
    ].items()


@given(st.integers(1, 40), st.integers(1, 120), st.integers(1, 60), st.integers(1, 4), st.integers(0, 9))
def test_quest_reads_the_pages_of_highest_summed_bounds_until_half_the_budget(
    page, length, tokens, group, seed
):
    draw = torch.Generator().manual_seed(seed)
    k = torch.randn(1, 1, length, 8, generator=draw)
    q = torch.randn(1, 1, group, 8, generator=draw)
    method = QuestRocketKV(page=page)
    state = page_bounds(k, page, -(-length // page) + 2)
    found = method.select(q, k, k[:, :, :0], torch.tensor(length), state, tokens, 1.0)[0, 0]
    bounds = []
    for run in k[0, 0].split(page):
        low, high = run.amin(0), run.amax(0)
        bounds.append(float(sum(torch.maximum(one * low, one * high).sum() for one in q[0, 0])))
    expected = []
    for best in sorted(range(len(bounds)), key=lambda n: -bounds[n]):
        expected += range(best * page, min(length, (best + 1) * page))
    assert sorted(s for s in found.tolist() if s >= 0) == sorted(expected[:tokens])


@pytest.mark.parametrize(("budget", "page"), [(256, 852), (1024, 213), (4096, 54)])
def test_quest_spends_half_on_scoring_in_every_layer(budget, page):
    resolved = build({"method": "quest_rocketkv"}).resolve(Shape(PROMPT, NEW, 32, 128), Budget(tokens=budget))
    assert resolved.selection.page == page
    assert [rule.read for rule in resolved.rules] == [budget // 2] * 32
    shape = cost.model_shape("llama31_8b")
    account = cost.account({"method": "quest_rocketkv"}, shape, prompt=PROMPT, new=NEW, tokens=budget)
    assert account.mean_step().read / shape.kv_bytes(1) == pytest.approx(budget, rel=0.01)
    # the official form reads 1/8 more than the whole budget for its pages of 16 alone
    official = cost.account("quest", shape, prompt=PROMPT, new=NEW, tokens=budget)
    assert official.mean_step().read / shape.kv_bytes(1) > 6800 + budget * 30 / 32


def test_snapkv_reads_no_more_than_the_budget_and_the_new_tokens():
    shape = cost.model_shape("llama31_8b")
    account = cost.account({"method": "snapkv_rocketkv"}, shape, prompt=PROMPT, new=NEW, tokens=256)
    assert account.kept == 64 + 3 * (64 - 32)
    assert cost.account({"method": "snapkv", "heads": "query_head"}, shape, prompt=PROMPT, new=NEW, tokens=256).kept \
        == 256 + 3 * (256 - 32)  # fmt: skip
