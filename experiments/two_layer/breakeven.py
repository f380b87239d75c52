"""Dollars per day of both layers, and the number of sessions per day at which rented devices become cheaper.

At the API, cost is proportional to the sessions. Devices are rented whole and around the clock, busy or not, so their
cost is a step function: one more device whenever the existing ones are full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from kvbench.config.errors import UserError

DAY = 86_400  # seconds


@dataclass(frozen=True)
class Fleet:
    """Rented devices of one kind.

    Attributes:
        usd_per_hour: rent of one device.
        capacity: sessions per day per device, 0 if it cannot serve any.
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
        """Cost of a session on a full device; infinite if it cannot serve any."""
        return self.usd_per_day / self.capacity if self.capacity else math.inf

    def devices(self, sessions: float) -> int:
        """Number of devices for a number of sessions per day.

        Raises:
            UserError: sessions below 0, or a device that cannot serve any.
        """
        if sessions < 0:
            raise UserError(f"sessions: {sessions} is below 0")
        if sessions and not self.capacity:
            raise UserError("capacity: this device cannot serve a session")
        return math.ceil(sessions / self.capacity) if sessions else 0

    def per_day(self, sessions: float) -> float:
        """Dollars per day for a number of sessions; at least one device is rented."""
        return self.usd_per_day * max(1, self.devices(sessions))


@dataclass(frozen=True)
class BreakEven:
    """Break-even in sessions per day, None if there is none.

    Attributes:
        first: smallest number at which the devices cost no more than the API.
        always: smallest number from which the devices never cost more again (they may briefly cost more right after a
            device is added).
    """

    first: int | None
    always: int | None


def break_even(usd_per_session: float, fleet: Fleet) -> BreakEven:
    """Break-even of a fleet with the API.

    With rent r per day, capacity c and API price s, k devices cost no more than the API from k r / s sessions on and
    serve up to k c. So the first device breaks even, or none does. The break-even is permanent from the first k for
    which device k + 1, needed from k c + 1 sessions on, starts above its own break-even of (k + 1) r / s.

    Args:
        usd_per_session: price of a session at the API, above 0.
        fleet: the devices.

    Raises:
        UserError: a price that is not above 0.
    """
    if not usd_per_session > 0:
        raise UserError(f"usd_per_session: {usd_per_session} is not above 0")
    # an exact fraction, so that floating-point noise cannot decide when a device is full
    one = Fraction(fleet.usd_per_day / usd_per_session).limit_denominator(1_000_000)
    if one > fleet.capacity:
        return BreakEven(None, None)
    spare = fleet.capacity - one
    if spare == 0:
        # every device breaks even exactly when full, so one more session costs more again
        return BreakEven(math.ceil(one), 1 if fleet.capacity == 1 else None)
    devices = max(1, math.ceil((one - 1) / spare))
    return BreakEven(max(1, math.ceil(one)), max(1, math.ceil(devices * one)))


def mixed_per_day(sessions: float, usd_per_session: float, fleet: Fleet) -> tuple[float, int]:
    """Both layers combined: as many devices as pay off, with the remaining sessions at the API.

    Args:
        sessions: sessions per day.
        usd_per_session: price of a session at the API.
        fleet: the devices.

    Returns:
        The lowest cost in dollars per day, and the number of devices.
    """
    options = {0, 1} if not fleet.capacity else {0, int(sessions // fleet.capacity), fleet.devices(sessions)}
    costs = {
        count: count * fleet.usd_per_day + max(0.0, sessions - count * fleet.capacity) * usd_per_session
        for count in options
    }
    best = min(costs, key=lambda count: (costs[count], count))
    return costs[best], best
