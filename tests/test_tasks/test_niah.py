import re

import pytest

from kvbench import tasks

NEEDLE = re.compile(r"Among the secret (\w+), the one for (\S.*?) is: (\S+)\.")
UUID = r"[0-9a-f-]{36}"
# RULER's settings (NVIDIA/RULER, scripts/synthetic.yaml): needles, golds, kind of key and value
SETTINGS = {
    "single_1": ({}, 1, 1, r"\d{7}"),
    "single_2": ({"haystack": "prose"}, 1, 1, r"\d{7}"),
    "single_3": ({"haystack": "prose", "value_type": "uuids"}, 1, 1, UUID),
    "multikey_1": ({"haystack": "prose", "keys": 4}, 4, 1, r"\d{7}"),
    "multikey_2": ({"haystack": "needles"}, None, 1, r"\d{7}"),
    "multikey_3": ({"haystack": "needles", "key_type": "uuids", "value_type": "uuids"}, None, 1, UUID),
    "multivalue": ({"haystack": "prose", "values": 4}, 4, 4, r"\d{7}"),
    "multiquery": ({"haystack": "prose", "keys": 4, "queries": 4}, 4, 4, r"\d{7}"),
}


def samples(renderer, n=3, length=2048, **values):
    return tasks.build("t", {"family": "niah", **values}).samples(n, 0, length, renderer)


@pytest.mark.parametrize("name", SETTINGS)
def test_needles_keys_and_golds_are_rulers(name, renderer):
    values, needles, golds, kind = SETTINGS[name]
    for sample in samples(renderer, **values):
        found = NEEDLE.findall(sample.context)
        assert len(found) == needles if needles else len(found) > 15
        assert len(sample.gold) == golds
        assert all(re.fullmatch(kind, value) for _, _, value in found)
        queried = [value for _, key, value in found if key in sample.question]
        assert sorted(queried) == sorted(sample.gold)
        keys = {key for _, key, _ in found if key in sample.question}
        assert len(keys) == values.get("queries", 1)
        assert all(key in sample.answer_prefix for key in keys)
        plural = golds > 1
        assert sample.answer_prefix.endswith(" are" if plural else " is")
        assert ("Several secret" in sample.context) == plural
        kind_word = "UUID" if "uuids" in values.values() else "number"
        assert (kind_word.lower() + "s" in sample.question) == plural


def test_questions_for_several_keys_follow_the_order_of_the_golds(renderer):
    sample = samples(renderer, keys=4, queries=3)[0]
    queried = re.search(r"give for (.*)\? Name", sample.question).group(1)
    keys = queried.replace("and ", "").split(", ")
    value = {key: value for _, key, value in NEEDLE.findall(sample.context)}
    assert tuple(value[key] for key in keys) == sample.gold
    assert queried.count(", and ") == 1


@pytest.mark.parametrize("haystack", ["noise", "prose", "needles"])
def test_needles_are_spread_over_the_whole_haystack(haystack, renderer):
    depths = []
    for sample in samples(renderer, n=30, length=1024, haystack=haystack):
        depths.append(sample.context.index(sample.gold[0]) / len(sample.context))
    assert min(depths) < 0.3
    assert max(depths) > 0.75
    assert 0.4 < sum(depths) / len(depths) < 0.7


def test_the_same_keys_and_values_at_every_length(renderer):
    short, long = (samples(renderer, n=1, length=length)[0] for length in (1024, 4096))
    assert short.gold == long.gold
    assert short.question == long.question
    assert 3.5 < renderer.count(long) / renderer.count(short) < 4.7


def test_an_essay_fills_and_is_named_by_its_hash(renderer, tmp_path):
    file = tmp_path / "essay.txt"
    file.write_text("This is the first one. And here is a second, of more words. " * 5)
    sample = samples(renderer, n=1, haystack="essay", essay=str(file))[0]
    assert sample.context.count("This is the first one.") > 50
    assert re.fullmatch(r"essay:[0-9a-f]{16}", sample.meta["haystack"])
    assert str(tmp_path) not in str(sample)
