"""Overrides that say whether a run is only planned, and for which device."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.config.errors import UserError


def taken(overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Overrides of the run, and those that only a plan has: `hardware` and `dry`."""
    own = {}
    rest = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if key in ("hardware", "dry") and equals:
            own[key] = value
        else:
            rest.append(text)
    return rest, own


def wanted(overrides: Sequence[str]) -> bool:
    """Whether a run is only to be planned.

    Raises:
        UserError: a value that is not allowed, or a device without a plan.
    """
    _, own = taken(overrides)
    dry = own.get("dry", "false")
    if dry not in ("true", "false"):
        raise UserError(f"dry: {dry} is not one of true, false")
    if dry == "false" and "hardware" in own:
        raise UserError("hardware: is for kvbench plan and dry=true; a run takes model.device")
    return dry == "true"
