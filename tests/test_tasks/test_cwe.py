import re
from collections import Counter

import pytest

from kvbench import tasks
from kvbench.config.errors import UserError
from kvbench.tasks import cwe


def samples(renderer, n, length):
    return tasks.build("t", {"family": "cwe"}).samples(n, 0, length, renderer)


def counted(text):
    """The numbers and the words of a numbered list."""
    items = re.findall(r"(\d+)\. (.+?)(?= \d+\. |\n|$)", text)
    return [int(number) for number, _ in items], Counter(word for _, word in items)


@pytest.mark.parametrize(
    ("length", "often", "seldom", "solved"), [(2048, 6, 1, (20, 3, 1)), (4096, 30, 3, (40, 10, 3))]
)
def test_the_ten_golds_come_up_as_often_as_in_ruler(renderer, length, often, seldom, solved):
    for sample in samples(renderer, 2, length):
        before, example, listed = sample.context.split("Here is a list of words")
        assert before == ""
        numbers, words = counted(listed.split("\n", 1)[1])
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(sample.gold) == 10
        assert {word for word, count in words.items() if count == often} == set(sample.gold)
        assert set(words.values()) == {often, seldom}
        # the example has its answer behind it
        example_list, answer = example.split("\nQuestion:")
        _, words = counted(example_list.split("\n", 1)[1])
        kinds, common, rare = solved
        assert len(words) == kinds
        assert sorted(words.values()) == [rare] * (kinds - 10) + [common] * 10
        numbers, answered = counted(answer.split("list are: ")[1])
        assert numbers == list(range(1, 11))
        assert all(words[word] == common for word in answered)


def test_longer_than_the_words_last_is_refused(renderer, monkeypatch):
    monkeypatch.setattr(cwe, "all_words", lambda: [f"word{i}" for i in range(60)])
    with pytest.raises(UserError, match=r"length: 8192 cannot be met"):
        samples(renderer, 1, 8192)
