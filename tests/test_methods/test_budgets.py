"""Budget rules: RocketKV's published table, ratios, covered prompts, compositions."""

import pytest

from kvbench.config.errors import UserError
from kvbench.methods import Budget, LayerRule, Shape, build
from kvbench.methods.rocket_budget import capacity, split_factor, split_traffic

# S (prompt + new tokens, 128 of them), t, C1, prompt tokens kept, page, channels, attended
ROCKET = [
    (8192, 256, 1448, 1320, 3, 67, 128), (8192, 512, 2418, 2290, 3, 81, 256), (8192, 1024, 3717, 3589, 2, 70, 512),
    (8192, 2048, 5256, 5128, 2, 99, 1024), (8192, 4096, 6841, 6713, 1, 76, 2048),
    (16384, 256, 1595, 1467, 3, 61, 128), (16384, 512, 2896, 2768, 3, 67, 256), (16384, 1024, 4837, 4709, 3, 81, 512),
    (16384, 2048, 7434, 7306, 2, 70, 1024), (16384, 4096, 10513, 10385, 2, 99, 2048),
    (32768, 256, 1618, 1490, 3, 60, 128), (32768, 512, 3191, 3063, 3, 61, 256), (32768, 1024, 5792, 5664, 3, 67, 512),
    (32768, 2048, 9674, 9546, 3, 81, 1024), (32768, 4096, 14868, 14740, 2, 70, 2048),
    (65536, 256, 1509, 1381, 3, 65, 128), (65536, 512, 3236, 3108, 3, 60, 256), (65536, 1024, 6382, 6254, 3, 61, 512),
    (65536, 2048, 11585, 11457, 3, 67, 1024), (65536, 4096, 19349, 19221, 3, 81, 2048),
    (98304, 256, 1394, 1266, 3, 70, 128), (98304, 512, 3138, 3010, 3, 62, 256), (98304, 1024, 6500, 6372, 3, 60, 512),
    (98304, 2048, 12386, 12258, 3, 63, 1024), (98304, 4096, 21718, 21590, 3, 72, 2048),
    (131072, 256, 1296, 1168, 3, 75, 128), (131072, 512, 3019, 2891, 3, 65, 256),
    (131072, 1024, 6472, 6344, 3, 60, 512),
    (131072, 2048, 12765, 12637, 3, 61, 1024), (131072, 4096, 23170, 23042, 3, 67, 2048),
]  # fmt: skip


@pytest.mark.parametrize(("total", "traffic", "c1", "kept", "page", "channels", "attended"), ROCKET)
def test_rocketkv_budget_table(total, traffic, c1, kept, page, channels, attended):
    assert capacity(total, traffic, None) == c1
    resolved = build({"method": "rocketkv"}).resolve(Shape(total - 128, 128, 32, 128), Budget(tokens=traffic))
    assert set(resolved.rules) == {LayerRule(keep=kept, read=attended)}
    assert (resolved.selection.page, resolved.selection.channels) == (page, channels)


def test_rocketkv_worked_example_of_the_paper():
    # c = 64: split 0.56, 10.3x in the first stage, 6.2x in the second
    assert split_factor(64) == pytest.approx(0.56)
    assert 65536 / capacity(65536, 1024, None) == pytest.approx(10.3, abs=0.05)
    assert capacity(65536, 1024, None) / 1024 == pytest.approx(6.23, abs=0.01)
    assert split_factor(1024) == pytest.approx(0.8) and split_factor(10**6) == 0.8


@pytest.mark.parametrize("traffic", [256, 512, 1024, 2048, 4096, 8192, 16384])
def test_adaptive_split_never_needs_pages_above_three(traffic):
    for total in range(traffic + 1, 200_000, 3777):
        page, channels = split_traffic(capacity(total, traffic, None), traffic, 128)
        assert page in (1, 2, 3) and 60 <= channels <= 128


def test_rocketkv_static_split_and_floor():
    shape = Shape(8192 - 128, 128, 2, 128)
    static = build({"method": "rocketkv", "split": 0.5}).resolve(shape, Budget(tokens=256))
    assert static.rules[0].keep == int(8192 / 32**0.5) - 128
    tight = Shape(2048 - 512, 512, 2, 128)
    floored = build({"method": "rocketkv", "floor_2m": True}).resolve(tight, Budget(tokens=256))
    assert floored.rules[0].keep == 2 * 512 - 512
    with pytest.raises(UserError, match="split"):
        build({"method": "rocketkv", "split": 1.5})


def test_rocketkv_halves_its_reads_just_below_the_prompt_and_is_dense_at_it():
    method, shape = build({"method": "rocketkv"}), Shape(900, 100, 2, 64)
    below = method.resolve(shape, Budget(tokens=999))
    assert below.rules[0].read == 499 and not below.dense
    at = method.resolve(shape, Budget(tokens=1000))
    assert at.dense and at.covers_prompt


def test_rocketkv_raised_to_the_window_splits_for_the_tokens_it_holds():
    resolved = build({"method": "rocketkv"}).resolve(Shape(1000, 900, 1, 128), Budget(tokens=256))
    assert resolved.rules == (LayerRule(keep=32, read=128),)
    assert (resolved.selection.page, resolved.selection.channels) == split_traffic(932, 256, 128)


def test_rocketkv_keeps_and_reads_its_dense_layers_whole():
    resolved = build({"method": "rocketkv", "dense_layers": 2}).resolve(
        Shape(900, 100, 4, 64), Budget(tokens=100)
    )
    assert resolved.rules[:2] == (LayerRule(), LayerRule())
    assert resolved.rules[2] == resolved.rules[3] != LayerRule()


def test_ratio_is_floored_in_decimal_arithmetic():
    assert Budget(ratio="0.2").of(10) == 2  # int(10 * (1 - 0.8)) is 1 in binary floating point
    assert Budget(ratio="0.29").of(100) == 29
    assert Budget(ratio="0.001").of(10) == 1
    assert Budget(ratio="0.1").label() == "0.1x" and Budget(tokens=64).label() == "64"


@pytest.mark.parametrize(
    "bad",
    [
        {"tokens": 0},
        {"tokens": -1},
        {"tokens": 2.5},
        {"ratio": "0"},
        {"ratio": "1.1"},
        {},
        {"tokens": 1, "ratio": "1"},
    ],
)
def test_bad_budgets_are_refused(bad):
    with pytest.raises(UserError, match="budget"):
        Budget(**bad)


@pytest.mark.parametrize(
    "name", ["random", "streaming_llm", "snapkv", "chunkkv", "quest", "sparq", "topk_oracle", "hsa"]
)
def test_covered_budgets_take_the_dense_path(name):
    method, shape = build({"method": name}), Shape(900, 100, 4, 64)
    assert method.resolve(shape, Budget(tokens=1000)).dense
    assert not method.resolve(shape, Budget(tokens=899)).dense


def test_an_eviction_that_keeps_the_whole_prompt_covers_it_without_being_dense():
    resolved = build({"method": "snapkv"}).resolve(Shape(900, 100, 2, 64), Budget(tokens=950))
    assert resolved.covers_prompt and not resolved.dense


def test_a_composition_uses_the_budget_for_both_unless_keep_is_given():
    entry = {"method": "chunkkv", "selection": {"name": "topk_oracle"}}
    method, shape = build(entry), Shape(900, 100, 2, 64)
    assert set(method.resolve(shape, Budget(tokens=200)).rules) == {LayerRule(keep=200, read=200)}
    assert method.describe()["eviction"] == "chunkkv" and method.describe()["selection"] == "topk_oracle"
    assert "keep" not in method.describe()["params"]
    for keep, kept in ((400, 400), (0.25, 225)):
        both = build({**entry, "keep": keep})
        assert set(both.resolve(shape, Budget(tokens=50)).rules) == {LayerRule(keep=kept, read=50)}
        assert both.describe()["params"]["keep"] == keep
    named = build({"eviction": "chunkkv", "selection": "topk_oracle", "keep": 400})
    assert named == build({**entry, "keep": 400})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"method": "chunkkv", "keep": 400}, "keep: needs an eviction and a selection"),
        ({"method": "quest", "keep": 400}, "keep: needs an eviction and a selection"),
        ({"method": "chunkkv", "selection": "hsa", "keep": 0}, "keep: 0 is not allowed"),
        ({"method": "chunkkv", "selection": "hsa", "keep": 1.5}, "keep: 1.5 is not allowed"),
        ({"method": "chunkkv", "selection": "hsa", "keep": True}, "keep: True is not allowed"),
        ({"method": "chunkkv", "selection": "hsa", "keep": "half"}, "keep: half is not allowed"),
        ({"method": "rocketkv", "keep": 400}, "there is no key 'keep'"),
    ],
)
def test_impossible_compositions_are_refused(entry, message):
    with pytest.raises(UserError, match=message):
        build(entry)


@pytest.mark.parametrize(("total", "traffic", "c1", "kept", "page", "channels", "attended"), ROCKET)
def test_rocketkvs_two_stages_composed_by_hand_are_rocketkv(
    total, traffic, c1, kept, page, channels, attended
):
    entry = {"method": "snapkv", "kernel": 63, "selection": "hsa", "keep": kept}
    resolved = build(entry).resolve(Shape(total - 128, 128, 32, 128), Budget(tokens=traffic))
    assert set(resolved.rules) == {LayerRule(keep=kept, read=attended)}
    assert (resolved.selection.page, resolved.selection.channels) == (page, channels)


def test_a_selection_reads_all_that_an_eviction_leaves_when_its_budget_covers_it():
    shape = Shape(900, 100, 2, 64)
    for selection in ("topk_oracle", {"name": "quest", "dense_layers": 0}, "hsa", "sparq"):
        method = build({"method": "snapkv", "selection": selection, "keep": 200})
        assert {rule.read for rule in method.resolve(shape, Budget(tokens=300)).rules} == {None}
        assert {rule.read for rule in method.resolve(shape, Budget(tokens=299)).rules} != {None}
    rolling = build({"method": "h2o", "selection": "topk_oracle", "keep": 40})
    assert {rule.read for rule in rolling.resolve(shape, Budget(tokens=41)).rules} == {None}
    assert {rule.read for rule in rolling.resolve(shape, Budget(tokens=40)).rules} == {40}


def test_quest_counts_whole_pages_and_leaves_its_first_layers_dense():
    rules = build({"method": "quest"}).resolve(Shape(900, 100, 4, 64), Budget(tokens=100)).rules
    assert rules == (LayerRule(),) * 2 + (LayerRule(read=96),) * 2
    assert build({"method": "quest"}).resolve(Shape(900, 100, 4, 64), Budget(tokens=8)).rules[2].read == 48


def test_rocketkv_mt_reads_like_rocketkv_and_keeps_everything():
    shape, budget = Shape(8064, 128, 2, 128), Budget(tokens=512)
    one = build({"method": "rocketkv", "window": 128}).resolve(shape, budget)
    many = build({"method": "rocketkv_mt"}).resolve(shape, budget)
    assert many.rules == one.rules and many.selection == one.selection
    assert many.retains and not one.retains


def test_rocketkv_of_tensorrt_llm_has_fixed_sizes():
    method = build({"method": "rocketkv_trtllm"})
    assert not method.needs_budget
    long = method.resolve(Shape(8000, 100, 2, 64), None)
    assert set(long.rules) == {LayerRule(keep=2048, read=256)}
    assert (long.selection.page, long.selection.channels) == (4, 64) and "2048" in long.notes[0]
    assert set(method.resolve(Shape(1000, 100, 2, 64), None).rules) == {LayerRule(read=256)}
    assert method.resolve(Shape(200, 56, 2, 64), None).dense
