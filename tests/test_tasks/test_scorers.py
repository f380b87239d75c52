import pytest

from kvbench.tasks.scorers import exact, f1, regex, rouge_l, scorers, substring_all, substring_any


@pytest.mark.parametrize(
    ("output", "gold", "every", "some"),
    [
        (" 8737866.", ["8737866"], 1, 1),
        ("nothing", ["8737866"], 0, 0),
        ("", ["8737866"], 0, 0),
        ("It is the Old-Wall", ["old-wall"], 1, 1),
        ("it is the old-wall", ["OLD-WALL"], 1, 1),
        ("1111111, 2222222 and 3333333", ["1111111", "2222222", "3333333", "4444444"], 0.75, 1),
        # parts of longer words count, and one place may serve two answers: that is RULER's rule
        ("running", ["run", "running", "ran"], 2 / 3, 1),
        ("12\n34", ["1234"], 0, 0),
    ],
)
def test_rulers_string_match(output, gold, every, some):
    assert substring_all(output, gold) == pytest.approx(every)
    # NVIDIA's rule; lm-eval divides by the number of answers
    assert substring_any(output, gold) == some


@pytest.mark.parametrize(
    ("output", "gold", "score"),
    [
        ("The Old Wall.", ["old wall"], 1),
        ("an old wall", ["gate", "Old wall!"], 1),
        ("old walls", ["old wall"], 0),
        ("", ["the"], 1),
    ],
)
def test_exact(output, gold, score):
    assert exact(output, gold) == score


@pytest.mark.parametrize(
    ("output", "gold", "score"),
    [
        ("the old wall", ["old wall"], 1),
        ("old wall here", ["old gate"], 2 / 5),
        ("old wall here", ["gate", "old wall"], 4 / 5),
        ("old old", ["old"], 2 / 3),
        ("", ["wall"], 0),
        ("gate", ["wall"], 0),
    ],
)
def test_f1(output, gold, score):
    assert f1(output, gold) == pytest.approx(score)


@pytest.mark.parametrize(
    ("output", "gold", "score"),
    [
        # Lin (2004), section 3.1: LCS of the candidates with the reference is 3 and 2 of 4 words
        ("police kill the gunman", ["police killed the gunman"], 3 / 4),
        ("the gunman kill police", ["police killed the gunman"], 2 / 4),
        ("a b c d", ["b d"], 2 * 2 / 6),
        ("b d", ["a b c d"], 2 * 2 / 6),
        ("x", ["a", "x"], 1),
        ("", ["a"], 0),
    ],
)
def test_rouge_l(output, gold, score):
    assert rouge_l(output, gold) == pytest.approx(score)


def test_regex():
    assert regex("It is 42.", [r"\b4\d\b"]) == 1
    assert regex("It is 420.", [r"\b4\d\b", r"^42"]) == 0


def test_all_scorers_by_name():
    assert set(scorers()) == {"substring_all", "substring_any", "exact", "f1", "rouge_l", "regex"}
    assert scorers()["f1"] is f1
