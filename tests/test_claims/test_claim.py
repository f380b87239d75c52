"""The rule that makes a verdict of a printed number and what we find."""

import pytest

from kvbench.claims.claim import (
    BY_MODEL,
    CONTRADICTED,
    DEPENDS,
    NEEDS_GPU,
    NOT_DERIVABLE,
    REPRODUCED,
    UNDECIDED,
    Claim,
    Finding,
    Reading,
    Result,
    Source,
    verdict,
)
from kvbench.config.errors import UserError


def claim(value, **fields):
    known = {"claim": "c", "where": "w", "setting": "s", "unit": "x", "known": "second-hand", "how": "h"}
    known |= {"id": "p.c", "check": {"name": "none"}, "command": "kvbench run", "widest": 25.0}
    known |= {"printed": f"{abs(value)}", "axis": "baseline"}
    return Claim(value=value, **known | fields)


def judged(value, *readings, **fields):
    return verdict(claim(value, **fields), Finding(tuple(readings)))


def reading(value, **fields):
    return Reading(value=value, **{"basis": "formula"} | fields)


@pytest.mark.parametrize(
    ("printed", "ours", "expected"),
    [
        # rounded, or cut off: less than one unit of the last digit
        (26.5, 26.57, REPRODUCED),
        (26.5, 26.44, REPRODUCED),
        (26.5, 26.61, CONTRADICTED),
        (26.5, 26.6, CONTRADICTED),
        (0.56, 0.57, CONTRADICTED),
        (2048, 2048.9, REPRODUCED),
        (2048, 2049, CONTRADICTED),
    ],
)
def test_printed_digits_decide_how_close_is_equal(printed, ours, expected):
    assert judged(printed, reading(ours)) == expected


def test_a_tolerance_replaces_the_digits():
    assert judged(256, reading(252), tolerance=5) == REPRODUCED
    assert judged(256, reading(250), tolerance=5) == CONTRADICTED


def test_one_sided_claims():
    assert judged(400, reading(425), relation="at least") == REPRODUCED
    assert judged(400, reading(60), relation="at least") == CONTRADICTED
    assert judged(0.3, reading(0.2), relation="at most") == REPRODUCED
    assert judged(0.3, reading(0.5), relation="at most") == CONTRADICTED


def test_the_plain_reading_comes_first_and_others_only_explain():
    good, bad = reading(10.0, name="good"), reading(20.0, name="bad")
    assert judged(10, good, bad) == REPRODUCED
    assert judged(10, bad, good) == DEPENDS
    assert judged(10, bad, reading(10.0, beside=True)) == CONTRADICTED
    assert judged(10, reading(10.0, beside=True), bad) == CONTRADICTED


def test_a_modelled_reading_is_labelled():
    assert judged(10, reading(10.0, basis="modelled")) == BY_MODEL
    assert judged(10, reading(10.0, basis="measured")) == REPRODUCED


def test_a_limit_refutes_but_does_not_reproduce():
    low, high = reading(1.8, limit=True), reading(4.4, limit=True)
    assert judged(3.7, low) == CONTRADICTED
    assert judged(3.7, low, high) == DEPENDS
    assert judged(1.5, low, high) == NEEDS_GPU


def test_a_measured_interval_agrees_with_what_is_inside():
    inside = reading(70.0, low=60.0, high=80.0, basis="measured")
    assert judged(73.8, inside) == REPRODUCED
    assert judged(88.0, inside) == CONTRADICTED


def test_an_interval_that_is_too_wide_reproduces_nothing_but_still_refutes():
    wide = reading(70.0, low=57.0, high=83.0, basis="measured")
    assert judged(73.8, wide) == UNDECIDED
    assert judged(73.8, wide, widest=26.0) == REPRODUCED
    assert judged(88.0, wide) == CONTRADICTED


def test_what_the_source_does_not_define_is_not_derivable():
    assert judged(10, reading(20.0), defined=False) == NOT_DERIVABLE
    assert judged(10, reading(20.0), reading(10.0), defined=False) == DEPENDS
    # within a limit, with nothing to measure it
    assert judged(1.5, reading(1.8, limit=True), command=None, widest=None) == NOT_DERIVABLE


def test_a_verdict_that_depends_on_the_reading_names_the_axis():
    source, finding = Source("p", "s", 1, ()), Finding((reading(20.0), reading(10.0)))
    assert Result(source, claim(10), finding).verdict == DEPENDS
    with pytest.raises(UserError, match=r"p\.c: axis: missing"):
        Result(source, claim(10, axis=None), finding)


def test_a_claim_without_readings_needs_a_command():
    assert judged(1) == NEEDS_GPU
    with pytest.raises(AssertionError, match=r"p\.c"):
        verdict(claim(1, command=None, widest=None), Finding())


def test_a_number_of_ours_that_is_not_finite_gives_no_verdict():
    """It would be a contradiction: no comparison with NaN is true."""
    for value in (float("nan"), float("inf")):
        with pytest.raises(ArithmeticError, match=r"^our number is (nan|inf)$"):
            Reading(value=value, basis="measured")
        for end in ("low", "high"):
            with pytest.raises(ArithmeticError, match=r"^our number is (nan|inf)$"):
                Reading(value=1.0, basis="measured", **{"low": 0.0, "high": 2.0} | {end: value})
