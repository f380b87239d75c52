"""Which tokens of a prompt are compressed, in later turns of a conversation too."""

import pytest

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


@pytest.mark.parametrize(("tokens", "length"), [(4, 8), (12, 19)])
def test_a_budget_is_that_of_the_first_turn_unless_it_covers_it(tokens, length):
    method = build({"method": "rocketkv_mt"})
    (part,) = prompt_parts(IDS, 5, "query_aware", "compressed", 9, [method])
    resolved = part.resolve(method, Budget(tokens=tokens), Shape(19, 4, 2, 16))
    assert resolved == method.resolve(Shape(length, 4, 2, 16), Budget(tokens=tokens))


def test_room_for_a_question_is_part_of_the_budget_outside_of_a_conversation():
    method = build({"method": "rocketkv"})
    (part,) = prompt_parts(IDS, 5, "query_agnostic", "compressed", None, [method])
    resolved = part.resolve(method, Budget(tokens=4), Shape(5, 4, 2, 16))
    assert resolved == method.resolve(Shape(5, 18, 2, 16), Budget(tokens=4))
