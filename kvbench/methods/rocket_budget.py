"""RocketKV's budget arithmetic (arXiv 2502.14051v3, section 3.6; rounding as in the official accuracy code)."""

import math


def split_factor(compression: float) -> float:
    """Adaptive split factor: the exponent of the compression that goes to the first stage."""
    return min(0.2 + 0.06 * math.log2(compression), 0.8)


def capacity(total: int, traffic: int, split: float | None) -> int:
    """Tokens in the cache after the first stage, including room for new ones.

    Args:
        total: prompt and new tokens, S.
        traffic: the token budget t.
        split: a static split factor, or None for the adaptive one.
    """
    compression = max(1.0, total / traffic)
    share = split_factor(compression) if split is None else split
    return math.floor(total / compression**share)


def split_traffic(capacity: int, traffic: int, head_dim: int) -> tuple[int, int]:
    """Page size and channel count of the second stage.

    Args:
        capacity: tokens in the cache, C1.
        traffic: the token budget t, half of it for scoring.
        head_dim: D.

    Returns:
        (page, channels); channels is at least 1.
    """
    compression = max(1.0, capacity / traffic)
    root = math.ceil(math.sqrt(compression))
    page = root if root <= compression else 1
    return page, min(head_dim, max(1, int(head_dim * page / compression)))
