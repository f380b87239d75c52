"""KL divergence between the next-token distributions of two servers, from the top-k log probabilities they report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kvbench.config.numbers import clamped

Token = TypeVar("Token", int, str)

#: what the rounding of reported log probabilities may add up to
ROUNDING = 0.01

KL_MEANING = (
    "KL(reference || method) in nats, from the top-k logprobs of both: tokens that both list stand for themselves, "
    "all others are one. Merging outcomes never raises a KL divergence, so this is a lower bound of the KL over "
    "the full vocabulary; `covered` is the reference's probability that stands for itself."
)


@dataclass(frozen=True)
class LogprobComparison:
    """Means over positions.

    Attributes:
        positions: number of positions.
        kl: lower bound of KL(reference || method), nats; see `KL_MEANING`.
        covered: reference's probability of the tokens that both list.
        top1: share of positions at which both have the same most probable token.
    """

    positions: int
    kl: float | None
    covered: float | None
    top1: float | None


def compare_logprobs(
    reference: Sequence[Mapping[Token, float]], method: Sequence[Mapping[Token, float]]
) -> LogprobComparison:
    """Compares the log probabilities of two servers at the same positions of the same text.

    Args:
        reference: per position the logprobs of the reference's most probable tokens.
        method: the same of the other server.

    Returns:
        Means; None without positions.

    Raises:
        ArithmeticError: a log probability is not finite, or they add up to more than 1.
    """
    assert len(reference) == len(method)
    n = len(reference)
    if not n:
        return LogprobComparison(0, None, None, None)
    pairs = list(zip(reference, method, strict=True))
    bounds = [kl_bound(p, q) for p, q in pairs]
    return LogprobComparison(
        n,
        math.fsum(kl for kl, _ in bounds) / n,
        math.fsum(covered for _, covered in bounds) / n,
        sum(max(p, key=p.__getitem__) == max(q, key=q.__getitem__) for p, q in pairs) / n,
    )


def kl_bound(p: Mapping[Token, float], q: Mapping[Token, float]) -> tuple[float, float]:
    """KL divergence of two distributions after merging all tokens that are not listed by both.

    Args:
        p: logprobs of some tokens under the reference.
        q: logprobs of some tokens under the method.

    Returns:
        (nats, reference's probability of the tokens that both list).

    Raises:
        ArithmeticError: as for `compare_logprobs`.
    """
    shared = sorted(p.keys() & q.keys())
    # rounded logprobs can add up to slightly more than 1
    p_shared, q_shared = (
        clamped(math.fsum(math.exp(x[token]) for token in shared), 0, 1, ROUNDING, "a sum of probabilities")
        for x in (p, q)
    )
    kl = math.fsum(math.exp(p[token]) * (p[token] - q[token]) for token in shared)
    p_rest, q_rest = 1 - p_shared, max(1e-9, 1 - q_shared)
    if p_rest > 0:
        kl += p_rest * math.log(p_rest / q_rest)
    return clamped(kl, 0, math.inf, ROUNDING, "the KL divergence"), p_shared
