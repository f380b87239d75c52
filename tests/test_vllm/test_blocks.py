"""The shared prefix of prompts, against a comparison of every pair."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kvbench.vllm.blocks import shared_prefix, short_prefix

prompts = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=8)


@given(prompts)
def test_the_longest_shared_prefix_of_any_two(found):
    longest = 0
    for a, b in itertools.combinations(found, 2):
        longest = max(longest, *(n for n in range(7) if a[:n] == b[:n] and n <= min(len(a), len(b))))
    assert shared_prefix(found) == longest


@given(st.integers(0, 70), st.integers(1, 64))
def test_one_line_only_where_a_block_does_not_fit(prefix, block):
    lines = short_prefix([{"shared_prefix": prefix, "block": block}] * 3)
    assert len(lines) == (0 < prefix < block)
    assert all(f"{prefix} tokens is shorter than a block of {block}" in line for line in lines)


def test_rows_of_before_and_servers_that_do_not_say_are_silent():
    assert short_prefix([{}, {"shared_prefix": None, "block": 16}, {"shared_prefix": 3, "block": None}]) == []
