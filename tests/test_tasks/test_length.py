import pytest

from kvbench.config.errors import UserError
from kvbench.tasks import Sample
from kvbench.tasks.length import fit, largest_fitting


@pytest.mark.parametrize("unit", [1, 3, 7.3, 90])
@pytest.mark.parametrize("room", [40, 41, 100, 999, 5000])
@pytest.mark.parametrize("most", [None, 5, 100])
def test_finds_the_largest_in_few_counts(unit, room, most):
    counts = []

    def count(n):
        counts.append(n)
        return 20 + int(unit * n)

    units, tokens = largest_fitting(count, room, smallest=1, largest=most)
    assert tokens == 20 + int(unit * units)
    fitting = [n for n in range(1, (most or room) + 1) if 20 + int(unit * n) <= room]
    assert units == max(fitting, default=1)
    assert len(counts) <= 8


def test_survives_counts_that_jump():
    count = {n: 10 * n + (n * 7919) % 23 for n in range(1, 400)}.__getitem__
    units, tokens = largest_fitting(count, 1000, smallest=1)
    assert tokens == count(units) <= 1000
    assert count(units + 1) > 1000


def test_lengths_that_cannot_be_met_are_refused(byte_renderer):
    def build(units):
        return Sample("x" * 100 * units, "?", "", ("a",), max_new_tokens=10)

    assert byte_renderer.count(fit(build, byte_renderer, 1020)) == 1001
    with pytest.raises(UserError, match="length: 100 is too short, this task needs 111 tokens or more"):
        fit(build, byte_renderer, 100)
    with pytest.raises(UserError, match="length: 200 cannot be met, the closest is 111 tokens"):
        fit(build, byte_renderer, 200)
    with pytest.raises(UserError, match="length: 1020 cannot be met, the closest is 311 tokens"):
        fit(build, byte_renderer, 1020, largest=3)


def test_text_without_tokens_is_refused():
    """A tokenizer that knows no word of a text may give one token for all of it."""
    with pytest.raises(UserError, match="length: more text has no more tokens with this tokenizer, 7 is all"):
        largest_fitting(lambda _: 7, 1000, smallest=1)
    assert largest_fitting(lambda _: 7, 1000, smallest=1, largest=12) == (12, 7)
