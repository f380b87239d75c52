"""The pass key: place, sentences and essays of a clone, scores, lengths in words."""

import json
import random

import pytest

from kvbench.config.errors import UserError
from kvbench.tasks import Renderer, build, passkey

SETTINGS = {
    "instruction": "Look.\n", "retrieval_target_template": "<K> it is. <K>!", "retrieval_target_placeholder": "<K>",
    "retrieval_question": "\nWhich? It is ",
}  # fmt: skip


def task_of(**settings):
    return build("passkey", {"family": "passkey", "length": [90], **settings})


@pytest.fixture
def clone(tmp_path):
    essays = tmp_path / passkey._ESSAYS
    essays.mkdir(parents=True)
    (essays / "b.txt").write_text("three  four\n\nfive")
    (essays / "a.txt").write_text("one two\n")
    file = tmp_path / passkey._FILE
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"eval_params": SETTINGS}))
    return tmp_path


@pytest.mark.parametrize("depths", [2, 10])
def test_the_key_stands_at_every_depth_of_the_words(renderer, depths):
    task = task_of(depths=depths)
    samples = task.samples(depths, 0, 90, renderer)
    assert samples == task.samples(20, 0, 90, renderer)[:depths] != task.samples(depths, 1, 90, renderer)
    for index, sample in enumerate(samples):
        (key,) = sample.gold
        head, needle = passkey._OWN.head, passkey._OWN.needle.format(key=key)
        before, after = sample.context.removeprefix(head).split(needle)
        words = int(90 * index / (depths - 1))
        assert (len(before.split()), len(after.split())) == (words, 90 - words)
        assert sample.meta["depth"] == round(100 * index / (depths - 1)) and len(key) == 7 and key.isdigit()
        assert (task.score(f"It is {key}.", sample), task.score("no", sample)) == (1, 0)
    assert len({sample.gold for sample in samples}) == depths


def test_sentences_and_essays_are_the_clones(clone, renderer):
    task = task_of(repo=str(clone), length=[7], depths=3)
    first, middle, last = task.samples(3, 0, 7, renderer)
    assert (
        first.context
        == f"Look.\n {first.gold[0]} it is. {first.gold[0]}! one two\nthree  four\n\nfiveone two\nthree "
    )
    key = middle.gold[0]
    assert middle.context == f"Look.\none two\nthree {key} it is. {key}! four\n\nfiveone two\nthree "
    assert last.context.endswith(f"three {last.gold[0]} it is. {last.gold[0]}!  ")
    assert middle.question == "\nWhich? It is " and task.wording.startswith("rocketkv (")
    assert middle.meta["haystack"].startswith("essay:")
    (clone / passkey._FILE).write_text(
        json.dumps({"eval_params": {**SETTINGS, "retrieval_target_placeholder": "?"}})
    )
    with pytest.raises(
        UserError, match=r"^task\.passkey\.repo: .* has no sentences in .*clone of github\.com/NVlabs"
    ):
        task_of(repo=str(clone)).samples(1, 0, 90, renderer)


@pytest.mark.parametrize(
    ("output", "key", "expected"),
    [
        ("123 45.", "123 45", (1, 1)), ("it is 12345", "123 45", (0, 0.5)), ("1 2345", "12345", (0, 0.8)),
        ("The key: 1,2a 34!", "12a 34", (1, 5 / 6)), ("", "12", (0, 0)),
    ],
)  # fmt: skip
def test_scores_are_the_official_ones(output, key, expected):
    found = (passkey.exact_match(output, key), passkey.partial_match(output, key))
    assert found == pytest.approx(expected)


def test_the_longest_part_is_that_of_a_slow_search():
    rng = random.Random(0)
    for _ in range(300):
        key, output = ("".join(rng.choices("012", k=rng.randrange(low, 9))) for low in (1, 0))
        parts = {key[i:j] for i in range(len(key)) for j in range(i, len(key) + 1)}
        longest = max(len(part) for part in parts if part in output)
        assert passkey.partial_match(output, key) == longest / len(key)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": 1}, "depths: 1 is not allowed, give 2 to 101"),
        ({"digits": 0}, "digits: 0 is not allowed"),
        ({"length": [0]}, r"length: \[0\] is not allowed, give positive numbers of words"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=rf"^task\.passkey\.{message}"):
        task_of(**settings)


def test_a_prompt_that_the_model_does_not_take_is_refused(tokenizers):
    small = Renderer(tokenizers["chatml"], limit=600)
    assert task_of(length=[200]).samples(1, 0, 200, small)
    with pytest.raises(
        UserError, match=r"length: 900 words are \d+ tokens with the answer and the model takes 600"
    ):
        task_of(length=[900]).samples(1, 0, 900, small)
    assert task_of().config.tokens(81_920) == 108_953 + 128
