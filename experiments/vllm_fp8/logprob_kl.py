"""KL divergence between the next-token distributions of two servers, from the top-k log probabilities they report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Token = TypeVar("Token", int, str)

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
    kl: float
    covered: float
    top1: float


def compare_logprobs(
    reference: Sequence[Mapping[Token, float]], method: Sequence[Mapping[Token, float]]
) -> LogprobComparison:
    """Compares the log probabilities of two servers at the same positions of the same text.

    Args:
        reference: per position the logprobs of the reference's most probable tokens.
        method: the same of the other server.

    Returns:
        Means; NaN without positions.
    """
    assert len(reference) == len(method)
    n = len(reference)
    if not n:
        return LogprobComparison(0, math.nan, math.nan, math.nan)
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
    """
    shared = sorted(p.keys() & q.keys())
    p_shared = math.fsum(math.exp(p[token]) for token in shared)
    q_shared = math.fsum(math.exp(q[token]) for token in shared)
    kl = math.fsum(math.exp(p[token]) * (p[token] - q[token]) for token in shared)
    # rounded logprobs can add up to slightly more than 1
    p_rest, q_rest = max(0.0, 1 - p_shared), max(1e-9, 1 - q_shared)
    if p_rest > 0:
        kl += p_rest * math.log(p_rest / q_rest)
    return max(0.0, kl), min(1.0, p_shared)
