"""Dollars per day of both layers, and from how many sessions per day the rented devices are the cheaper ones.

A session costs the same every time at the API. Devices are rented whole and around the clock, whether they are busy or
not, so that their cost is a staircase: one more device whenever those at hand are full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from kvbench.config.errors import UserError

DAY = 86_400  # seconds


@dataclass(frozen=True)
class Fleet:
    """Devices of one kind.

    Attributes:
        usd_per_hour: rent of one device.
        capacity: sessions per day that one device serves, 0 if it cannot serve any.
    """

    usd_per_hour: float
    capacity: int

    def __post_init__(self) -> None:
        if self.usd_per_hour <= 0:
            raise UserError(f"usd_per_hour: {self.usd_per_hour} is not above 0")
        if self.capacity < 0:
            raise UserError(f"capacity: {self.capacity} is below 0")

    @property
    def usd_per_day(self) -> float:
        """Rent of one device for a day."""
        return 24 * self.usd_per_hour

    @property
    def usd_per_session(self) -> float:
        """Cost of a session on a device that is as busy as it may be; infinite if it cannot serve any."""
        return self.usd_per_day / self.capacity if self.capacity else math.inf

    def devices(self, sessions: float) -> int:
        """Devices that so many sessions per day need.

        Raises:
            UserError: sessions below 0, or a device that cannot serve any.
        """
        if sessions < 0:
            raise UserError(f"sessions: {sessions} is below 0")
        if sessions and not self.capacity:
            raise UserError("capacity: this device cannot serve a session")
        return math.ceil(sessions / self.capacity) if sessions else 0

    def per_day(self, sessions: float) -> float:
        """Dollars per day for so many sessions; one device at least, it is rented before the first session comes."""
        return self.usd_per_day * max(1, self.devices(sessions))


@dataclass(frozen=True)
class BreakEven:
    """Sessions per day, None where it never happens.

    Attributes:
        first: fewest sessions per day at which the devices cost no more than the API.
        always: from here on the devices cost no more at any number of sessions (right after a device has been added
            they may be dearer again for a while).
    """

    first: int | None
    always: int | None


def break_even(usd_per_session: float, fleet: Fleet) -> BreakEven:
    """Where a fleet costs no more than an API.

    With r the rent per day, c the capacity and s the API's price, k devices cost no more from k r / s sessions on, and
    serve up to k c. So it happens with the first device or never; and for good from the first k on whose successor
    starts, at k c + 1 sessions, above its own break-even of (k + 1) r / s.

    Args:
        usd_per_session: price of a session at the API, above 0.
        fleet: the devices.

    Raises:
        UserError: a price that is not above 0.
    """
    if not usd_per_session > 0:
        raise UserError(f"usd_per_session: {usd_per_session} is not above 0")
    # an exact fraction, so that binary noise does not decide where a device is full
    one = Fraction(fleet.usd_per_day / usd_per_session).limit_denominator(1_000_000)
    if one > fleet.capacity:
        return BreakEven(None, None)
    spare = fleet.capacity - one
    if spare == 0:
        # every device breaks even when it is full, so one session more is dearer again
        return BreakEven(math.ceil(one), 1 if fleet.capacity == 1 else None)
    devices = max(1, math.ceil((one - 1) / spare))
    return BreakEven(max(1, math.ceil(one)), max(1, math.ceil(devices * one)))


def mixed_per_day(sessions: float, usd_per_session: float, fleet: Fleet) -> tuple[float, int]:
    """Both layers together: as many devices as pay, the sessions that they cannot serve go to the API.

    Args:
        sessions: per day.
        usd_per_session: price of a session at the API.
        fleet: the devices.

    Returns:
        The least dollars per day, and the number of devices.
    """
    options = {0, 1} if not fleet.capacity else {0, int(sessions // fleet.capacity), fleet.devices(sessions)}
    costs = {
        count: count * fleet.usd_per_day + max(0.0, sessions - count * fleet.capacity) * usd_per_session
        for count in options
    }
    best = min(costs, key=lambda count: (costs[count], count))
    return costs[best], best
