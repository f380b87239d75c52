import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.config import text as module
from kvbench.config.text import counted, file_name, printable


def test_a_noun_follows_its_number():
    assert [counted(n, "sample") for n in (0, 1, 2, 1000)] == [
        "0 samples",
        "1 sample",
        "2 samples",
        "1,000 samples",
    ]
    # the formatted number decides
    assert [counted(n, "sample", ".3g") for n in (1.0, 1.5, 1.0001)] == [
        "1 sample",
        "1.5 samples",
        "1 sample",
    ]


# --- what a terminal would obey

ATTACKS = {
    "colour": "\x1b[31m",
    "title": "\x1b]0;x\x07",
    "link": "\x1b]8;;http://x\x1b\\",
    "one byte": "\x9b31m",
    "back": "a\x08b",
    "overwritten": "bad\rgood",
    "bell": "\x07",
    "null": "\x00",
    "deleted": "\x7f",
    "form feed": "a\x0cb\x0bc",
    "next line": "a\x85b",
    "reversed": "\u202eabc\u202c",
    "isolated": "\u2066abc\u2069",
    "marks": "\u200e\u200f\u061c",
    "hidden": "a\u200bb\u2060c\u00add\ufeffe",
    "separators": "a\u2028b\u2029c",
    "tagged": "a\U000e0001\U000e0041\U000e007fb",
    "annotated": "\ufff9a\ufffab\ufffb",
    "half a pair": "\ud800",
}
#: format characters that words of some languages, and emoji, are written with
WRITTEN = "\u200c\u200d"


def obeyed(text):
    """Characters that Unicode says are no text, apart from line breaks and tabs; written anew, not from the module."""
    kinds = ("Cc", "Cf", "Zl", "Zp", "Cs")
    return [c for c in text if unicodedata.category(c) in kinds and c not in "\t\n" + WRITTEN]


@pytest.mark.parametrize("name", ATTACKS)
def test_what_a_terminal_would_obey_is_written_out(name):
    attack = ATTACKS[name]
    assert obeyed(attack) and not obeyed(printable(attack))
    # every character is told by its code
    for c in obeyed(attack):
        assert f"{ord(c):04x}" in printable(attack)


@pytest.mark.parametrize(
    "text", ["", "a\tb\nc", "caf\u00e9 \u65e5\u672c \u0627\u0644", "\U0001f468\u200d\U0001f469", "\\x1b[0m"]
)
def test_other_text_is_as_it_was(text):
    assert printable(text) == text


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(categories=("Cc", "Cs", "Zl", "Zp", "Lu", "Nd", "Po"))))
def test_no_text_has_a_control_character_left(text):
    found = printable(text)
    assert not obeyed(found) and printable(found) == found


@pytest.mark.parametrize("name", ATTACKS)
def test_every_part_of_the_pattern_counts(name, monkeypatch):
    """The test above fails for a pattern that lets the characters of one attack pass."""
    attack = ATTACKS[name]
    pattern = module._OBEYED
    weaker = re.compile(f"(?![{re.escape(''.join(obeyed(attack)))}]){pattern.pattern}")
    monkeypatch.setattr(module, "_OBEYED", weaker)
    assert obeyed(printable(attack))


# --- names of files

LABELS = [
    "", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "C:\\x", "a\0b", "a\nb", "~", "-", " ",
    "a b", "a-b", ".hidden", "...", "\u202ex", "x" * 300, "x" * 81, "\ud800", "caf\u00e9", "a:b", "a*b", "a?b", "con|x",
    "$HOME", "`x`", "%s", "chunkkv[chunk=10,heads=layer]", "snapkv", "a+b", "A", "\u65e5\u672c",
]  # fmt: skip


@pytest.mark.parametrize("label", LABELS)
def test_a_label_stays_in_its_folder(label, tmp_path):
    name = file_name(label)
    path = tmp_path / "figures" / f"{name}.svg"
    path.parent.mkdir()
    path.write_text("x")
    assert [p.name for p in path.parent.iterdir()] == [f"{name}.svg"] == [Path(f"{name}.svg").name]
    assert list(tmp_path.iterdir()) == [path.parent] and not name.startswith(".") and name
    # some suffix and prefix still fit
    assert len(f"kvbench-{name}.json".encode()) < 255 and name.isprintable() and name.isascii()


def test_labels_that_differ_have_names_that_differ():
    names = [file_name(label) for label in LABELS]
    # also one that is the name of another
    names += [file_name(name) for name in names if name not in LABELS]
    assert len(set(names)) == len(names)
    assert file_name("chunkkv[chunk=10,heads=layer]") == "chunkkv[chunk=10,heads=layer]"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=90), st.text(max_size=90))
def test_any_label_is_a_name(one, other):
    name = file_name(one)
    assert name not in ("", ".", "..") and not set("/\\\0:") & set(name)
    assert (name == file_name(other)) == (one == other)
