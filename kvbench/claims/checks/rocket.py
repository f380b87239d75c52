"""RocketKV's budget arithmetic, computed by the method's code."""

from __future__ import annotations

from typing import Literal

from kvbench.claims.claim import Finding, Reading
from kvbench.methods.rocket_budget import capacity, split_factor, split_traffic


def rocket_split(
    total: int,
    budget: int,
    part: Literal["first stage", "second stage", "page", "channels"],
    head_dim: int = 128,
) -> Finding:
    """Compression of one part of the two stages, at `total` tokens and a traffic budget."""
    kept = capacity(total, budget, None)
    page, channels = split_traffic(kept, budget, head_dim)
    parts = {
        "first stage": total / kept,
        "second stage": kept / budget,
        "page": page,
        "channels": head_dim / channels,
    }
    return Finding((Reading(value=parts[part], basis="formula"),))


def rocket_split_factor(compression: float) -> Finding:
    """The first stage's share of the compression, as an exponent."""
    return Finding((Reading(value=split_factor(compression), basis="formula"),))


def rocket_saturation(split: float) -> Finding:
    """The smallest compression at which the first stage's share reaches `split`."""
    compression = next(c for c in range(1, 1_000_000) if split_factor(c) >= split - 1e-12)
    return Finding((Reading(value=compression, basis="formula"),))
