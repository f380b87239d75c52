"""Numbers that are not finite raise, wherever Python would have compared them away."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.config.numbers import NotFiniteError, all_finite, clamped, finite, read_json

BAD = [math.nan, math.inf, -math.inf]
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize("value", BAD)
def test_what_max_and_min_would_have_hidden(value):
    assert max(0.0, math.nan) == 0.0  # why
    for function in (lambda: finite(value, "x"), lambda: clamped(value, 0.0, math.inf, 1e-3, "x")):
        with pytest.raises(NotFiniteError, match=r"^x is (nan|inf|-inf)$"):
            function()


def test_only_a_rounding_error_is_clamped():
    assert clamped(-1e-4, 0.0, math.inf, 1e-3, "x") == 0.0
    assert clamped(1.0005, 0.0, 1.0, 1e-3, "x") == 1.0
    assert clamped(0.25, 0.0, 1.0, 0.0, "x") == 0.25
    with pytest.raises(ArithmeticError, match=r"^x is -0\.01, which is not in \[0\.0, inf\]$"):
        clamped(-0.01, 0.0, math.inf, 1e-3, "x")


@given(NESTED)
def test_json_of_finite_numbers_is_read_back(value):
    assert all_finite(value)
    assert read_json(json.dumps(value)) == value


@given(NESTED, st.sampled_from(BAD))
def test_a_number_that_is_not_finite_is_found_at_any_depth(value, bad):
    for whole in ([value, {"a": [bad]}], {"a": value, "b": [[bad]]}, (value, bad)):
        assert not all_finite(whole)
        with pytest.raises(ValueError, match="is not a number of JSON"):
            read_json(json.dumps(whole))


@pytest.mark.parametrize("text", ["[NaN]", "[-Infinity]", "[1e999]", "[-1e400]", "[" * 100_000, "{", ""])
def test_what_is_no_json(text):
    with pytest.raises(ValueError, match=r"not|too|Expect"):
        read_json(text)
