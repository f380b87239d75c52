import pytest

from kvbench import tasks
from kvbench.config.errors import UserError


def grid(**values):
    return tasks.build("grid", {"family": "needle_grid", **values})


@pytest.mark.parametrize("haystack", ["noise", "prose"])
@pytest.mark.parametrize("length", [1024, 4096])
def test_the_needle_stands_at_its_depth(haystack, length, renderer):
    task = grid(haystack=haystack)
    samples = task.samples(11, 0, length, renderer)
    assert [sample.meta["depth"] for sample in samples] == [*task.config.depths, 0]
    for sample in samples:
        head = sample.context.index("at the end.\n") + len("at the end.\n")
        start = sample.context.index("Among the secret numbers") - head
        needle = len("Among the secret numbers, the one for adjective-noun is: 1234567.")
        room = len(sample.context) - head - needle
        # a needle goes between pieces, the longest is a line of noise or a sentence
        assert abs(100 * start / room - sample.meta["depth"]) < 100 * 100 / room


def test_repetitions_differ_and_do_not_depend_on_the_number(renderer):
    task = grid(depths=[0, 50])
    samples = task.samples(4, 0, 512, renderer)
    assert [sample.meta["depth"] for sample in samples] == [0, 50, 0, 50]
    assert len({sample.gold for sample in samples}) == 4
    assert task.samples(2, 0, 512, renderer) == samples[:2]


def test_depths_may_be_fractions_of_percents(renderer):
    assert grid(depths=[12.5]).samples(1, 0, 512, renderer)[0].meta["depth"] == 12.5


@pytest.mark.parametrize("depths", [[50, 50], [0, 100, 0.0]])
def test_a_depth_is_given_once(depths):
    with pytest.raises(UserError, match=r"depths: .* is not allowed, give each only once"):
        grid(depths=depths)
