"""Patterns: found as Python's `re` finds them, in time or not at all."""

import re
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.tasks import patterns
from kvbench.tasks.patterns import ScoreError, fault, matches

ATOMS = st.sampled_from(
    [
        "a",
        "b",
        r"\d",
        r"\w",
        r"\b",
        r"\s",
        r"\S",
        ".",
        "[ab]",
        "[^a]",
        r"[\[]",
        "a{,2}",
        "^",
        "$",
        "5",
        " ",
        "(?i:A)",
        r"\.",
        r"\n",
    ]
)
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})")
        | inner.map(lambda part: f"(?:{part})*")
        | inner.map(lambda part: f"({part})+?")
        | inner.map(lambda part: f"(?:{part}){{1,2}}")
    ),
    max_leaves=6,
)


@pytest.fixture
def no_child(monkeypatch):
    """What only a child process could search is taken for no match."""
    monkeypatch.setattr(patterns, "_in_child", lambda *_: pytest.fail("a child process"))


@settings(max_examples=400, deadline=None)
@given(PATTERNS, st.text("abAx5 .\n_\té\x0b", max_size=8))
def test_re2_is_asked_only_what_it_reads_as_python_does(pattern, text):
    linear = patterns._linear(pattern) if patterns._reads_alike(pattern, text) else None
    if fault(pattern) is None and linear is not None:
        assert bool(linear.search(text)) == bool(re.search(pattern, text))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        # RE2 refuses these
        (r"(?=.*b)a", "ab"), (r"(a)\1", "baab"), (r"(?<!x)a", "xa"), (r"\Aab\Z", "ab"), ("a++b", "aab"),
        ("x{1001}", "x"),
        # and reads these otherwise
        ("[a[:alpha:]]", "z"), ("a{,2}b", "b"), ("a$", "a\n"), (r"\w{5}", "Größe"), (r"\bß", "aß"), (r"\d", "٣"),
        (r"a\sb", "a\u3000b"), (r"a\sb", "a\x0bb"), (r"(a)(b)(c)(d)(e)(f)(g)(h)(i)(j)\10", "abcdefghij\n"),
        ("ü", "Ü"), ("(?i)ü", "Ü"), ("é", "e\u0301"),
    ],
)  # fmt: skip
def test_every_pattern_matches_as_in_python(pattern, text):
    expected = pattern == "é" or bool(re.search(pattern, text))
    assert matches([pattern], text) == matches(["never", pattern], text) == expected


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(a*)*c", "(.*a){20}", r"(\w+\s?)*!"])
def test_patterns_that_backtrack_in_python_end_at_once(no_child, pattern):
    start = time.process_time()
    assert not matches([pattern], "a" * 10 + "." + " x" * 5000)
    assert time.process_time() - start < 2


def test_a_pattern_that_only_python_reads_has_a_time_limit(monkeypatch):
    monkeypatch.setattr(patterns, "LIMIT_S", 0.5)
    with pytest.raises(
        ScoreError, match=r"answers: the pattern '\(\?=a\)\(a\+\)\+\$' takes more than 0.5 s"
    ) as error:
        matches(["x", r"(?!y)z", r"(?=a)(a+)+$", r"(?=b)"], "a" * 40 + "!")
    assert "\n" not in str(error.value)


def test_a_child_that_dies_is_an_error_that_names_the_pattern(monkeypatch):
    monkeypatch.setattr(patterns, "_CHILD", "print('at 0', flush=True); raise SystemExit(3)")
    with pytest.raises(ScoreError, match=r"the pattern '\(\?=a\)' cannot be searched for"):
        matches([r"(?=a)"], "b")


def test_the_child_needs_nothing_but_python():
    assert matches([r"(?=b)"], "ab") and sys.executable


@pytest.mark.parametrize(
    "pattern", ["(", "*", "[", r"\Q", "(?P<1>a)", "a{2,1}", "(" * 100_000, "(?:" * 100_000 + ")" * 100_000]
)
def test_a_fault_is_one_line(pattern):
    assert fault(pattern) and "\n" not in str(fault(pattern))
    assert len(patterns.shown(pattern)) < 100


def test_a_pattern_without_fault():
    assert fault(r"(?<=x)a*+\b") is None
