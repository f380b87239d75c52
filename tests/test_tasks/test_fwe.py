import re
from collections import Counter

import pytest

from kvbench import tasks
from kvbench.config.errors import UserError


def words_of(sample):
    return sample.context.split("the three that come up most. ")[1].split(" ")


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("length", [1024, 4096])
def test_frequencies_follow_the_power_law(renderer, alpha, length):
    task = tasks.build("t", {"family": "fwe", "alpha": alpha})
    for sample in task.samples(2, 0, length, renderer):
        ranked = Counter(words_of(sample)).most_common()
        assert ranked[0][0] == "..."
        # no ties at the border between gold and not
        assert {word for word, _ in ranked[1:4]} == set(sample.gold)
        assert ranked[3][1] > ranked[4][1]
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked[1:])
        scale = ranked[0][1]
        for k, (_, count) in enumerate(ranked, start=1):
            assert count == int(scale * k**-alpha)
        assert len(ranked) <= max((length - 50) // 50, 5)


def test_code_words_stand_in_random_order(renderer):
    words = words_of(tasks.build("t", {"family": "fwe"}).samples(1, 0, 2048, renderer)[0])
    half = len(words) // 2
    assert abs(words[:half].count("...") - words[half:].count("...")) < 0.2 * half


@pytest.mark.parametrize("alpha", [1, 0.5, 10.1, 300, 1e9])
def test_exponents_that_no_prompt_has_room_for_are_refused(alpha):
    with pytest.raises(
        UserError, match=r"task\.t\.alpha: .* is not allowed, give a number above 1 and up to 10"
    ):
        tasks.build("t", {"family": "fwe", "alpha": alpha})


@pytest.mark.parametrize("alpha", [6.0, 10.0])
def test_a_length_without_room_for_the_third_word_is_refused_at_once(renderer, alpha):
    with pytest.raises(UserError, match=rf"length: 2048 is too short, with alpha={alpha:g} this task needs"):
        tasks.build("t", {"family": "fwe", "alpha": alpha}).samples(1, 0, 2048, renderer)
