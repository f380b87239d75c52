"""Which tokens of a prompt are compressed, in later turns of a conversation too."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.engine.turns import prompt_parts, split_prompt
from kvbench.methods import Budget, Shape, build

IDS = list(range(20))


def test_split_prompt():
    ids = list(range(10))
    assert split_prompt(ids, 6, "query_aware", "compressed") == (list(range(9)), [], 9)
    assert split_prompt(ids, 6, "query_aware", "dense") == (list(range(10)), [], 9)
    assert split_prompt(ids, 6, "query_agnostic", "compressed") == (list(range(6)), [6, 7, 8], 9)
    assert split_prompt([1, 2], 2, "query_agnostic", "compressed") == ([1], [], 2)


def test_split_of_a_later_turn():
    assert split_prompt(IDS, 5, "query_aware", "compressed", 9) == (IDS[:8], IDS[8:19], 19)
    assert split_prompt(IDS, 5, "query_aware", "dense", 9) == (IDS[:9], IDS[9:19], 19)


def test_a_prompt_outside_of_a_conversation_is_one_part():
    methods = [build({"method": name}) for name in ("dense", "rocketkv_mt")]
    (part,) = prompt_parts(IDS, 5, "query_agnostic", "compressed", None, methods)
    assert part.split == (IDS[:5], IDS[5:19], 19) and part.first_turn is None and part.cells == (0, 1)


def test_methods_that_filter_again_compress_the_whole_conversation():
    methods = [build({"method": name}) for name in ("dense", "rocketkv_mt", "knorm")]
    keeping, filtering = prompt_parts(IDS, 5, "query_aware", "compressed", 9, methods)
    assert keeping.split == (IDS[:8], IDS[8:19], 19) and keeping.cells == (0, 2)
    assert filtering.split == (IDS[:19], [], 19) and filtering.cells == (1,)
    assert keeping.first_turn == filtering.first_turn == 8
    (only,) = prompt_parts(IDS, 5, "query_aware", "compressed", 9, methods[:1])
    assert only.cells == (0,)


@pytest.mark.parametrize(("first_token", "own"), [("compressed", 4), ("dense", 5)])
def test_only_the_present_turn_observes(first_token, own):
    methods = [build({"method": name}) for name in ("dense", "rocketkv_mt")]
    keeping, filtering = prompt_parts(IDS, 5, "query_aware", first_token, 9, methods, 15)
    assert keeping.turn is None and filtering.turn == own
    (second,) = prompt_parts(IDS, 5, "query_aware", first_token, 9, methods[1:])
    assert second.turn == own + 6
    # a turn of one token, which may be fed: some query has to observe
    (short,) = prompt_parts(IDS, 5, "query_aware", first_token, 9, methods[1:], 19)
    assert short.turn == 1
    (alone,) = prompt_parts(IDS, 5, "query_aware", first_token, None, methods)
    assert alone.turn is None


@pytest.mark.parametrize(("tokens", "length"), [(4, 8), (12, 19)])
def test_a_budget_is_that_of_the_first_turn_unless_it_covers_it(tokens, length):
    method = build({"method": "rocketkv_mt"})
    (part,) = prompt_parts(IDS, 5, "query_aware", "compressed", 9, [method])
    resolved = part.resolve(method, Budget(tokens=tokens), Shape(19, 4, 2, 16))
    assert resolved == method.resolve(Shape(length, 4, 2, 16, fed=1), Budget(tokens=tokens))


def test_room_for_a_question_is_part_of_the_budget_outside_of_a_conversation():
    method = build({"method": "rocketkv"})
    (part,) = prompt_parts(IDS, 5, "query_agnostic", "compressed", None, [method])
    resolved = part.resolve(method, Budget(tokens=4), Shape(5, 4, 2, 16))
    assert resolved == method.resolve(Shape(5, 18, 2, 16, fed=1), Budget(tokens=4))


def official_prompt_budget(prompt, new, traffic):
    """RocketKV's prompt budget with S = prompt + new: the accuracy code without its floor."""
    total = prompt + new
    compression = max(1.0, total / traffic)
    split = min(0.2 + 0.06 * math.log2(compression), 0.8)
    return int(total / compression**split) - new


@given(
    st.integers(200, 40_000),
    st.integers(1, 128),
    st.integers(16, 4096),
    st.sampled_from(["compressed", "dense"]),
)
def test_rocketkvs_sizes_follow_from_the_whole_prompt(prompt, new, traffic, first_token):
    method, ids = build({"method": "rocketkv", "window": 1}), list(range(prompt))
    (part,) = prompt_parts(ids, prompt, "query_aware", first_token, None, [method])
    length = len(part.split.compressed)
    resolved = part.resolve(method, Budget(tokens=traffic), Shape(length, new, 1, 128))
    assert resolved.covers_prompt == (traffic >= length + new)
    if not resolved.covers_prompt:
        expected = max(1, official_prompt_budget(prompt, new, traffic))
        assert resolved.rules[0].keep == (expected if expected < length else None)


def test_a_prompt_whose_first_token_is_compressed_keeps_what_the_official_code_keeps():
    # one token less by S = T - 1 + M
    method, ids = build({"method": "rocketkv"}), list(range(1909))
    (part,) = prompt_parts(ids, 1909, "query_aware", "compressed", None, [method])
    kept = part.resolve(method, Budget(tokens=256), Shape(1908, 64, 1, 64)).rules[0].keep
    assert kept == official_prompt_budget(1909, 64, 256) != official_prompt_budget(1908, 64, 256)
