"""Break-even arithmetic against counting, and bad numbers."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.config.errors import UserError
from kvbench.experiments.two_layer.breakeven import BreakEven, Fleet, break_even, mixed_per_day

rents = st.integers(1, 40).map(lambda cents: cents / 24)  # whole dollars per day
capacities = st.integers(0, 40)
prices = st.integers(1, 40).map(lambda quarters: quarters / 4)


def counted(usd_per_session: float, fleet: Fleet) -> BreakEven:
    """Brute force over the number of sessions; the pattern repeats long before 3,000."""
    if not fleet.capacity:
        return BreakEven(None, None)
    cheaper = [
        fleet.usd_per_day * math.ceil(sessions / fleet.capacity) <= sessions * usd_per_session + 1e-9
        for sessions in range(1, 3000)
    ]
    dearer = [sessions for sessions, holds in enumerate(cheaper, 1) if not holds]
    first = cheaper.index(True) + 1 if any(cheaper) else None
    last = dearer[-1] if dearer else 0
    return BreakEven(first, last + 1 if last < 2900 else None)


@settings(max_examples=300)
@given(rents, capacities, prices)
def test_break_even_matches_brute_force(rent, capacity, price):
    fleet = Fleet(rent, capacity)
    assert break_even(price, fleet) == counted(price, fleet)


def test_a_worked_break_even():
    """24 USD a day against 1 USD a session: k devices pay from 24 k sessions on, and serve 30 k.

    The fourth is needed from 91 sessions on and pays from 96 on; the fifth is needed from 121 on and pays from 120 on.
    """
    assert break_even(1.0, Fleet(1.0, 30)) == BreakEven(24, 96)
    assert break_even(1.0, Fleet(1.0, 1000)) == BreakEven(24, 24)
    assert break_even(1.0, Fleet(1.0, 23)) == BreakEven(None, None)
    assert break_even(1.0, Fleet(1.0, 24)) == BreakEven(24, None)
    assert break_even(100.0, Fleet(1.0, 1000)) == BreakEven(1, 1)


def test_fleet_cost_is_a_step_function_from_one_device():
    fleet = Fleet(1.0, 30)
    assert [fleet.per_day(sessions) for sessions in (0, 1, 30, 31, 61)] == [24, 24, 24, 48, 72]
    assert fleet.usd_per_session == 0.8
    assert math.isinf(Fleet(1.0, 0).usd_per_session)


@settings(max_examples=200)
@given(st.integers(0, 200), rents, capacities, prices)
def test_both_layers_together_cost_no_more_than_any_split(sessions, rent, capacity, price):
    fleet = Fleet(rent, capacity)
    splits = {
        devices: devices * fleet.usd_per_day + max(0, sessions - devices * capacity) * price
        for devices in range(sessions + 2)
    }
    found, devices = mixed_per_day(sessions, price, fleet)
    assert found == pytest.approx(min(splits.values()))
    assert found == pytest.approx(splits[devices])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: break_even(0.0, Fleet(1.0, 30)), "usd_per_session: 0.0 is not above 0"),
        (lambda: break_even(float("nan"), Fleet(1.0, 30)), "usd_per_session: nan"),
        (lambda: Fleet(0.0, 30), "usd_per_hour: 0.0 is not above 0"),
        (lambda: Fleet(1.0, -1), "capacity: -1 is below 0"),
        (lambda: Fleet(1.0, 0).devices(1), "cannot serve a session"),
        (lambda: Fleet(1.0, 5).devices(-1), "sessions: -1 is below 0"),
    ],
)
def test_invalid_numbers_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()
