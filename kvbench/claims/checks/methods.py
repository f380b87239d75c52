"""What methods' own formulas give for the settings of their papers."""

from __future__ import annotations

from collections.abc import Mapping

from kvbench.claims.claim import Finding, Reading
from kvbench.methods.rocket_budget import capacity, split_factor, split_traffic


def rocket_split(total: int, budget: int, printed: Mapping[str, float], head_dim: int = 128) -> Finding:
    """Whether RocketKV's two stages divide a compression as printed: exponent, stages, page and channels.

    Args:
        total: prompt and new tokens.
        budget: the traffic budget.
        printed: the printed numbers by name, rounded or cut off.
        head_dim: channels per head.
    """
    kept = capacity(total, budget, None)
    page, channels = split_traffic(kept, budget, head_dim)
    ours = {
        "exponent": split_factor(total / budget),
        "first stage": total / kept,
        "second stage": kept / budget,
        "page": page,
        "head dimension": head_dim / channels,
    }
    right = all(abs(ours[name] - value) < _last_digit(value) for name, value in printed.items())
    name = ", ".join(f"{name} {ours[name]:.4g}" for name in printed)
    return Finding((Reading(name=name, value=float(right), basis="formula"),))


def quest_traffic(page: int, tokens: int, budgets: Mapping[str, int]) -> Finding:
    """How many times fewer bytes Quest reads: 1 / (1 / page + budget / tokens), of its section 3.5.

    Args:
        page: tokens per page.
        tokens: tokens of the context.
        budgets: tokens in the selected pages, by name of the reading.
    """
    found = [
        Reading(name=name, value=1 / (1 / page + budget / tokens), basis="formula")
        for name, budget in budgets.items()
    ]
    return Finding(tuple(found))


def quest_limit(page: int, tokens: int, budget: int) -> Finding:
    """The limit that bytes set to Quest's speed-up of self-attention."""
    value = 1 / (1 / page + budget / tokens)
    return Finding((Reading(name="bytes of bounds and pages", value=value, basis="formula", limit=True),))


def _last_digit(value: float) -> float:
    return 10.0 ** -len(str(value).partition(".")[2].rstrip("0")) * (1 - 1e-9)
