"""Checks that every loader makes of a request before it yields it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvbench.claude.prices import PriceBook, Terms
from kvbench.claude.request import Request, Usage
from kvbench.config.errors import UserError

END_OF_TIME = 253_402_300_800.0  # the year 10000: later times are in other units than seconds

# what a line or an item of the wrong shape raises while it is read
MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
)


def check(request: Request, prices: PriceBook) -> None:
    """Checks that a request can be placed in time and priced.

    Raises:
        UserError: a time that is none, a day before the model's first price, or a speed that it does not offer.
    """
    if not math.isfinite(request.ttft) or request.ttft < 0:
        raise UserError(f"ttft={request.ttft}: must be seconds, not negative")
    check_terms(request, prices)


def check_terms(call: Terms, prices: PriceBook) -> None:
    """Checks that something billed has a time and a price; errors as in `check`."""
    if not math.isfinite(call.t) or not 0 <= call.t < END_OF_TIME:
        raise UserError(f"t={call.t}: must be seconds since 1970-01-01")
    prices.cost(call, Usage())


def text_of(row: Mapping[str, Any], name: str) -> str:
    """A field of a row that is a text, "" if it is missing or null.

    Raises:
        UserError: it is something else.
    """
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{name}={value}: must be a text")
    return value or ""


def whole(name: str, value: object) -> int:
    """A count of tokens.

    Raises:
        UserError: not a whole number, or negative.
    """
    if type(value) is not int:
        raise UserError(f"token counts must be whole numbers ({name}={value})")
    if value < 0:
        raise UserError(f"token counts must not be negative ({name}={value})")
    return value


def misfit(ids: object, name: str, tokens: int, block_size: int) -> UserError:
    """The error of a request whose hash ids are too few or too many for its tokens."""
    count = f"{len(ids)} ids" if isinstance(ids, list) else "no list of ids"
    return UserError(
        f"hash_ids do not fit {name}={tokens}: {count}, but {tokens // block_size} whole blocks of {block_size}"
    )
