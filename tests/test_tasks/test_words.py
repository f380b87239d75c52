import random
import re

from kvbench.tasks import words


def test_kinds_are_rulers():
    rng = random.Random(0)
    for _ in range(200):
        adjective, noun = re.fullmatch(r"(.+?)-(.+)", words.draw(rng, "words")).groups()
        assert f"{adjective}-{noun}"
        assert re.fullmatch(r"[1-9]\d{6}", words.draw(rng, "numbers"))
        assert re.fullmatch(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", words.draw(rng, "uuids"))


def test_words_come_from_wonderwords():
    assert "wakeful" in words.word_list("adjective")
    assert "aardvark" in words.word_list("noun")
    assert {"wakeful", "aardvark", "abide"} <= set(words.all_words())
    assert len(words.all_words()) > 8000


def test_new_words_are_new():
    used = {"1000000"}
    drawn = [words.draw_new(random.Random(i // 2), "numbers", used) for i in range(100)]
    assert len(set(drawn)) == 100
    assert set(drawn) < used
