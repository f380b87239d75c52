import os
import random

import pytest

from kvbench.config.errors import UserError
from kvbench.tasks import haystack


def test_insert_puts_needles_in_front_of_their_places():
    pieces = ["0", "1", "2"]
    assert haystack.insert(pieces, ["a", "b"], [0, 2]) == ["a", "0", "1", "b", "2"]
    assert haystack.insert(pieces, ["a", "b"], [1, 1]) == ["0", "a", "b", "1", "2"]
    assert haystack.insert(pieces, ["a"], [3]) == ["0", "1", "2", "a"]


def test_noise_hides_needles_on_lines_of_their_own():
    text = haystack.noise("Noise.").hide(["a", "b"], 20, random.Random(0))
    lines = text.split("\n")
    assert len(lines) == 22
    assert [line for line in lines if line != "Noise."] == ["a", "b"]


def test_prose_grows_and_its_sentences_rarely_repeat():
    filler = haystack.text("prose", None, random.Random(0))
    short, long = filler.pieces(40), filler.pieces(2000)
    assert " ".join(long).startswith(" ".join(short))
    assert len(" ".join(long).split()) == 2000
    assert all(piece.endswith(".") for piece in long[:-1])
    assert not any(c.isdigit() for c in " ".join(long))
    whole = [piece for piece in long if "," in piece]
    assert len(set(whole)) > 0.95 * len(whole)
    assert haystack.text("prose", None, random.Random(1)).pieces(40) != short


def test_hide_at_meets_both_ends_and_the_middle():
    filler = haystack.noise("Noise.")
    for depth, before in ((0, 0), (50, 5), (100, 10)):
        assert filler.hide_at("a", 10, depth).split("\n").index("a") == before


def test_needles_in_prose_stand_between_sentences_at_grid_depths():
    filler = haystack.text("prose", None, random.Random(0))
    count = len(filler.pieces(3000))
    for seed in range(20):
        text = filler.hide(["[a]", "[b]"], 3000, random.Random(seed))
        head, middle, tail = text.replace("[b]", "[a]").split("[a]")
        # behind the last word a needle may cut a sentence short
        inner = [part.strip() for part in (head, middle) if tail.strip()]
        assert all(part[-1:] in ("", ".") for part in inner)
        sentences = len(haystack.re.split(r"(?<=[.!?]) ", head.strip())) if head.strip() else 0
        assert sentences in {round(100 * d / 39) * count // 100 for d in range(40)}
        assert " ".join((head + middle + tail).split()) == " ".join(filler.pieces(3000))


def test_an_essay_is_used_from_its_start_and_repeated(tmp_path):
    file = tmp_path / "essay.txt"
    file.write_text("One two.\n\nThree   four? Five", encoding="utf-8")
    filler = haystack.text("essay", str(file), random.Random(0))
    assert filler.pieces(4) == ["One two.", "Three four?"]
    assert filler.pieces(7) == ["One two.", "Three four?", "Five One two."]
    assert filler.kind.startswith("essay:")
    file.write_text("Other words.", encoding="utf-8")
    os.utime(file, ns=(1, 1))
    changed = haystack.text("essay", str(file), random.Random(0))
    assert changed.pieces(2) == ["Other words."]
    assert changed.kind != filler.kind


def test_essays_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"essay: .*missing\.txt cannot be read"):
        haystack.text("essay", str(tmp_path / "missing.txt"), random.Random(0))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"empty\.txt is empty"):
        haystack.text("essay", str(tmp_path / "empty.txt"), random.Random(0))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    for path in (tmp_path / "binary.txt", tmp_path, "a\0b", "~nobody-of-this-name/essay.txt"):
        with pytest.raises(UserError, match="cannot be read as UTF-8") as error:
            haystack.text("essay", str(path), random.Random(0))
        assert "\n" not in str(error.value)
