"""Scores that are not shares from 0 to 1: their names say so, and every table shows the name."""

LOWER = ", lower is better"


def lower_is_better(metric: object) -> bool:
    """Whether a score of this name is a loss: 0 or more, without an upper bound."""
    return str(metric).endswith(LOWER)
